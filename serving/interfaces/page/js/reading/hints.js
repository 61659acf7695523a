// The first reading, step by step, on the page itself. A step is ticked when the reader has done it; hidden hints stay
// hidden in this browser until they are asked for again.

import { button, byId, element } from "../dom.js";
import { strings } from "../strings.js";

const HIDDEN = "csr:hints-hidden";
const DONE = "csr:hints-done";
const text = strings.reading.hints;
const STEPS = Object.entries(text.steps);

/** @returns {string[]} */
const done = () => JSON.parse(localStorage.getItem(DONE) ?? "[]");

export function drawHints() {
  const ticked = done();
  const node = byId("hints");
  node.hidden = localStorage.getItem(HIDDEN) === "yes";
  const next = STEPS.find(([name]) => !ticked.includes(name))?.[0];
  node.replaceChildren(
    element("h2", { id: "hints-title", class: "visually-hidden" }, text.title),
    element(
      "ol",
      {},
      STEPS.map(([name, [title, more]], index) => {
        const state = ticked.includes(name) ? "done" : name === next ? "next" : "";
        const mark = state === "done" ? "✓" : String(index + 1);
        return element(
          "li",
          { class: state, "aria-current": state === "next" ? "step" : null },
          element("span", { class: "mark", "aria-hidden": "true" }, mark),
          element("span", {}, element("strong", {}, title), " ", element("small", {}, more)),
        );
      }),
    ),
    button("×", () => hideHints(true), { "aria-label": text.close, title: text.close }),
  );
}

/** @param {boolean} hidden */
export function hideHints(hidden) {
  localStorage.setItem(HIDDEN, hidden ? "yes" : "no");
  drawHints();
}

/** @param {string} step the reader has done it, and needs no hint to those before it */
export function tick(step) {
  if (done().includes(step)) return;
  const before = STEPS.slice(
    0,
    STEPS.findIndex(([name]) => name === step),
  ).map(([name]) => name);
  localStorage.setItem(DONE, JSON.stringify([...new Set([...done(), ...before, step])]));
  drawHints();
}
