// The nodes of the reading view that stay; its parts fill them.

import { element, shape } from "../dom.js";
import { strings } from "../strings.js";

const text = strings.reading;
const NAMED = ["focus", "ignore", "finding", "contrast", "pan"];
/** @type {Record<string, string>} */
const SIGNS = { focus: "+", ignore: "−", finding: "✓", contrast: "◐", pan: "✥" };
const KEYS = { focus: "F", ignore: "I", finding: "N", contrast: "W", pan: "P" };

/** @param {string} id @param {string} label @param {Record<string, any>} attributes */
const named = (id, label, attributes = {}) => element("button", { type: "button", id, ...attributes }, label);

/** @param {string} name */
function tool(name) {
  const [label, title] = /** @type {any} */ (text.tools)[name];
  const input = element("input", {
    type: "radio",
    name: "kind",
    value: name,
    checked: name === "focus",
    "aria-keyshortcuts": /** @type {any} */ (KEYS)[name],
  });
  return element(
    "label",
    { title },
    input,
    element("span", {}, element("b", { "aria-hidden": "true" }, SIGNS[name]), ` ${label}`),
  );
}

function tools() {
  const {
    tools: { legend, add, undo, redo, reset },
  } = text;
  return element(
    "div",
    { class: "tools" },
    element(
      "fieldset",
      { class: "segmented" },
      element("legend", { class: "visually-hidden" }, legend),
      NAMED.map(tool),
    ),
    named("add-box", add, { disabled: true, "aria-keyshortcuts": "B" }),
    element("span", { class: "gap" }),
    named("undo", undo, { disabled: true, "aria-keyshortcuts": "Control+Z" }),
    named("redo", redo, { disabled: true, "aria-keyshortcuts": "Control+Shift+Z" }),
    named("reset", reset, { disabled: true }),
  );
}

function well() {
  const image = element("canvas", { id: "image", role: "img", "aria-label": text.looks.image });
  const boxes = shape("svg", {
    id: "boxes",
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": text.looks.boxesLabel,
  });
  const ask = element(
    "div",
    { id: "ask", class: "ask", role: "group", "aria-labelledby": "ask-text", hidden: true },
    element("p", { id: "ask-text", "aria-live": "polite" }),
    element("div", { id: "ask-answers", class: "chips" }),
  );
  const label = text.keys.push;
  const stage = element(
    "div",
    {
      id: "stage",
      class: "stage",
      tabindex: "0",
      role: "group",
      "aria-label": `${text.looks.image}. ${label}`,
      hidden: true,
    },
    image,
    /** @type {any} */ (boxes),
  );
  return element(
    "div",
    { class: "well", id: "well" },
    element("p", { id: "hint", class: "hint" }, text.empty),
    stage,
    ask,
  );
}

function results() {
  const { results: said, question } = text;
  const [concept, present, word] = said.columns;
  return element(
    "section",
    { class: "panel results", "aria-labelledby": "results-title", id: "results", "aria-busy": "false" },
    element(
      "div",
      { class: "scroll" },
      element("h2", { id: "results-title" }, said.title, " ", element("span", { id: "study-name" })),
      element(
        "div",
        { id: "result-body", hidden: true },
        element("p", { id: "stale", class: "help", hidden: true }, said.stale),
        ...["abstains", "help"].map((id) => element("p", { id, class: "help", hidden: true })),
        element("p", { id: "found", class: "findings", hidden: true }),
        element("div", { id: "classes", class: "classes", role: "group", "aria-label": said.classes }),
        element("p", { id: "summary", class: "summary", "aria-live": "polite" }),
        element(
          "section",
          { class: "question", "aria-labelledby": "question-title" },
          element("h3", { id: "question-title" }, question.title),
          element(
            "div",
            { "aria-live": "polite" },
            element("p", { id: "question-text" }),
            element("p", { id: "question-reason", class: "reason" }),
          ),
          element("div", { id: "question-answers", class: "chips" }),
        ),
        element(
          "table",
          { class: "concepts" },
          element("caption", { class: "visually-hidden" }, said.caption),
          element(
            "thead",
            {},
            element(
              "tr",
              {},
              element("th", { scope: "col" }, concept),
              element("th", { scope: "col" }, present),
              element("th", { scope: "col", id: "for-class" }),
              element("th", { scope: "col" }, word),
            ),
          ),
          element("tbody", { id: "concepts" }),
        ),
        element(
          "section",
          { class: "exemplar-part", "aria-labelledby": "atlas-title" },
          element("h3", { id: "atlas-title" }),
          element("p", { id: "atlas-note", class: "quiet" }),
          element("ul", { id: "exemplars", class: "exemplars" }),
          element("p", { id: "since", class: "quiet" }),
        ),
        element("p", { id: "timing", class: "quiet timing" }),
      ),
      element("p", { id: "result-empty", class: "quiet" }, text.empty),
    ),
    element(
      "div",
      { class: "foot" },
      element("div", { id: "signed", class: "signed", "aria-live": "polite" }),
      element("div", { id: "acts", class: "acts" }),
    ),
  );
}

/** @param {HTMLElement} root */
export function build(root) {
  root.replaceChildren(
    element("section", { id: "hints", class: "hints", "aria-labelledby": "hints-title", hidden: true }),
    element(
      "div",
      { class: "desk" },
      element("section", { class: "panel queue", id: "queue", "aria-labelledby": "queue-title" }),
      element(
        "section",
        { class: "viewer", "aria-labelledby": "viewer-title" },
        element("h2", { id: "viewer-title", class: "visually-hidden" }, text.looks.image),
        tools(),
        well(),
        element("div", { class: "under", id: "looks" }),
        element(
          "div",
          { class: "box-row" },
          element("ul", { id: "box-list", class: "box-list", "aria-label": text.boxes.label }),
          element("div", { id: "alpha-part" }),
        ),
      ),
      results(),
    ),
  );
}
