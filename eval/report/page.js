"use strict";
// Sorting: whole blocks (an experiment with its seeds) move; paradigm headings step aside; controls stay at the foot.
document.querySelectorAll("table.results").forEach(table => {
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
      const value = body => parseFloat(body.rows[0].cells[index + 1].dataset.sort);
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
document.querySelectorAll("[data-toggle]").forEach(button => {
  const section = button.closest("section"), name = button.dataset.toggle;
  const what = name === "no-seeds" ? "tr.seed" : "tbody.controls";
  if (!section.querySelector(what)) { button.remove(); return; }
  const set = off => { section.classList.toggle(name, off); button.setAttribute("aria-pressed", String(!off)); };
  button.parentElement.hidden = false;
  button.addEventListener("click", () => set(!section.classList.contains(name)));
  set(name === "no-seeds" && section.querySelectorAll("tr.seed").length > 12);
});
document.querySelectorAll("[data-only]").forEach(box => {
  const pictures = box.closest("section").querySelector(".pictures");
  if (!pictures.querySelector(".agree")) return;
  box.parentElement.hidden = false;
  box.addEventListener("change", () => pictures.classList.toggle("only-disagree", box.checked));
});
