"use strict";
const at = id => document.getElementById(id);
const chosen = {name: "", url: ""};
let round = 0;  // an answer to an earlier question is not shown

function make(tag, text = "", attributes = {}) {
  const found = Object.assign(document.createElement(tag), attributes);
  if (text) found.textContent = text;
  return found;
}

function tell(text, bad = false) {
  at("told").textContent = text;
  at("told").classList.toggle("bad", bad);
}

// The server's answer. Throws an Error with a sentence for people.
async function get(url, body, type) {
  let answer, said = {};
  try {
    answer = await fetch(url, body === undefined ? {} : {method: "POST", body, headers: {"Content-Type": type}});
    said = await answer.json();
  } catch {
    if (!answer) throw new Error("The server does not answer: has it ended?");
  }
  if (!answer.ok) throw new Error(said.error || `The server answered ${answer.status}: its terminal says why.`);
  return said;
}

function choose(name, url, button) {
  [chosen.name, chosen.url] = [name, url];
  document.querySelectorAll("#set button").forEach(each => each.setAttribute("aria-pressed", String(each === button)));
}

async function upload(file) {
  if (!file) return;
  try {
    tell(`Reading ${file.name} ...`);
    const found = await get("picture", file, "application/octet-stream");
    choose(found.name, URL.createObjectURL(file));
    tell(`${file.name}, ${found.width} x ${found.height} pixels. Ask.`);
  } catch (error) {
    tell(`${file.name}: ${error.message}`, true);
  }
}

function card(name) {
  const found = make("article", "", {className: "run waiting"});
  found.dataset.run = name;
  found.append(make("h2", name));
  return found;
}

function fill(place, found) {
  place.classList.remove("waiting");
  const head = place.querySelector("h2"), list = make("dl"), {look, similarity, caption, answer, drawing} = found;
  if (found.model) head.append(" ", make("small", `${found.model}, ${found.paradigm}; ${found.seconds} s`));
  const add = (term, how, ...content) => {
    const value = make("dd", "", {title: how || ""});
    value.append(...content);
    list.append(make("dt", term), value);
  };
  if (look?.percent) {
    const seen = make("div", "", {className: "seen"}), image = make("img", "", {alt: "the picture"}), veil = make("canvas");
    const draw = () => drawVeil(veil, image, look.percent, look.area);
    seen.append(image, veil);
    place.append(seen);
    image.addEventListener("load", draw);
    new ResizeObserver(draw).observe(image);
    image.src = chosen.url;
  }
  if (look) add(look.percent ? "looks by" : "does not show where it looks", "", look.how);
  if (similarity) {
    const among = similarity.others ? ` (fits better than ${similarity.above} of ${similarity.others} other captions)` : "";
    add(`similarity: ${similarity.how}`, "", similarity.value.toFixed(3) + among);
  }
  if (caption) add("caption", caption.how, caption.text || "(nothing)");
  if (answer) add(`answer: ${answer.how}`, "", answer.text || "(nothing)");
  if (drawing) add("drawing of the sentence", "", make("img", "", {src: drawing.image, alt: "drawing"}));
  place.append(list, ...found.errors.map(error => make("p", error, {className: "error"})));
}

async function ask() {
  const mine = ++round, [sentence, question] = ["sentence", "question"].map(id => at(id).value.trim());
  if (!chosen.name) return tell("Choose a picture first.", true);
  const longest = Number(at("runs").dataset.longest);
  for (const [what, text] of Object.entries({sentence, question}))
    if (text.length > longest) return tell(`The ${what} has ${text.length} characters; at most ${longest} are read.`, true);
  const missing = [...(sentence ? [] : ["a sentence for similarity and drawing"]), ...(question ? [] : ["a question for answers"])];
  const {runs} = await get("runs");  // also what was trained since the page was opened
  if (mine !== round) return;
  const cards = runs.map(card);
  at("runs").replaceChildren(...cards);
  for (const place of cards) {
    tell(`Asking ${place.dataset.run} ...`);
    const request = JSON.stringify({run: place.dataset.run, picture: chosen.name, sentence, question});
    const found = await get("ask", request, "application/json").catch(error => ({errors: [error.message]}));
    if (mine !== round) return;
    fill(place, found);
  }
  tell(`${runs.length} runs.${missing.length ? ` Without ${missing.join(" and ")}.` : ""}`);
}

async function begin() {
  const about = await get("runs");
  at("runs").dataset.longest = about.longest;
  at("set").hidden = !about.pictures.length;
  for (const each of about.pictures) {
    const button = make("button", "", {type: "button", title: each.caption});
    button.setAttribute("aria-label", each.caption || each.name);
    button.append(make("img", "", {src: each.image, alt: ""}));
    button.addEventListener("click", () => {
      choose(each.name, each.image, button);
      [at("sentence").value, at("question").value] = [each.caption, each.question];
      tell(`A picture of ${about.data}. Ask.`);
    });
    at("set").append(button);
  }
  tell(`${about.runs.length} runs. ${about.pictures.length ? "Drop a picture, or choose one." : "Drop a picture."}`);
}

at("file").addEventListener("change", event => { upload(event.target.files[0]); event.target.value = ""; });
["dragenter", "dragover", "dragleave", "drop"].forEach(kind => addEventListener(kind, event => {
  event.preventDefault();
  at("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
  if (kind === "drop") upload(event.dataTransfer.files[0]);
}));
at("form").addEventListener("submit", event => { event.preventDefault(); ask().catch(error => tell(error.message, true)); });
at("veils").addEventListener("click", () => {
  at("veils").setAttribute("aria-pressed", String(!at("runs").classList.toggle("unveiled")));
});
begin().catch(error => tell(error.message, true));
