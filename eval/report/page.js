"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Sorting moves whole blocks (an experiment with its seeds). Paradigm headings are collected at the top; controls stay at the bottom.
all("table.results").forEach(table => {
  const original = [...table.tBodies];
  const heads = [...table.tHead.rows[1].cells].slice(1);
  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = {none: "descending", descending: "ascending", ascending: "none"}[head.getAttribute("aria-sort") || "none"];
      heads.forEach(other => other.removeAttribute("aria-sort"));
      if (next !== "none") head.setAttribute("aria-sort", next);
      table.classList.toggle("sorted", next !== "none");
      const value = body => parseFloat(body.rows[0].cells[index + 1]?.dataset.sort);
      const blocks = original.filter(body => body.classList.contains("block"));
      if (next !== "none") blocks.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);  // missing values last, either way
        return next === "descending" ? y - x : x - y;
      });
      table.append(...(next === "none" ? original : [
        ...original.filter(body => body.classList.contains("paradigm")), ...blocks,
        ...original.filter(body => body.classList.contains("controls"))]));
    });
  });
});

all("[data-toggle]").forEach(button => {
  const section = button.closest("section"), name = button.dataset.toggle;
  const what = name === "no-seeds" ? "tr.seed" : "tbody.controls";
  if (!section.querySelector(what)) { button.remove(); return; }
  const set = off => { section.classList.toggle(name, off); button.setAttribute("aria-pressed", String(!off)); };
  button.parentElement.hidden = false;
  button.addEventListener("click", () => set(!section.classList.contains(name)));
  set(name === "no-seeds");
});

// Images: one at a time, selected in the strip or with the arrow keys, or all of them.
all(".browser").forEach(browser => {
  const articles = all("article", browser), buttons = all(".strip button", browser), whole = browser.querySelector("[data-all]");
  const show = index => {
    articles.forEach((article, i) => article.classList.toggle("current", i === index));
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
  };
  buttons.forEach((button, index) => {
    button.addEventListener("click", () => show(index));
    button.addEventListener("keydown", event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      const next = step && buttons.filter(each => each.offsetParent).at((buttons.filter(each => each.offsetParent).indexOf(button) + step) % buttons.length);
      if (next) { next.focus(); next.click(); }
    });
  });
  whole.addEventListener("click", () => whole.setAttribute("aria-pressed", String(!browser.classList.toggle("single"))));
  const only = browser.querySelector("[data-only]");
  if (browser.querySelector(".agree")) only.addEventListener("change", () => browser.classList.toggle("only-disagree", only.checked));
  else only.parentElement.remove();
  all("[hidden]", browser).forEach(each => { each.hidden = false; });
  browser.classList.add("single");
  show(0);
});

// Attention over an image, while the pointer or the focus is on a model's button, or for good after a click.
all("article.picture").forEach(article => {
  const image = article.querySelector(".what img"), buttons = all("[data-look]", article), veil = document.createElement("canvas");
  const numbers = text => text.split(" ").map(Number);
  const draw = button => {
    veil.hidden = !button;
    if (button) drawVeil(veil, image, numbers(button.dataset.look), numbers(button.dataset.area));
  };
  const pressed = () => buttons.find(button => button.getAttribute("aria-pressed") === "true");
  veil.hidden = true;
  image.after(veil);
  buttons.forEach(button => {
    ["pointerenter", "focus"].forEach(event => button.addEventListener(event, () => draw(button)));
    ["pointerleave", "blur"].forEach(event => button.addEventListener(event, () => draw(pressed())));
    button.addEventListener("click", () => {
      const on = pressed() === button;
      buttons.forEach(each => each.setAttribute("aria-pressed", String(each === button && !on)));
      draw(on ? null : button);
    });
  });
});

// Open collapsed sections for printing, and when a link leads into one.
addEventListener("beforeprint", () => all("details.task, .guide details").forEach(each => { each.open = true; }));
addEventListener("hashchange", () => document.querySelector(location.hash)?.closest("details")?.setAttribute("open", ""));
