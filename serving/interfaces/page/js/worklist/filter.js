// In which order and which part of the worklist is shown. The server does both; this browser remembers the choice.

import { element } from "../dom.js";
import { strings } from "../strings.js";

/** @typedef {import("./types.js").Filter} Filter */

/** @type {Filter} */
const FIRST = { order: "margin", progress: "all", help: false };
const KEPT = "csr:worklist";
const text = strings.worklist;

/** @returns {Filter} as it was left */
export function keptFilter() {
  try {
    return { ...FIRST, ...JSON.parse(localStorage.getItem(KEPT) ?? "{}") };
  } catch {
    return FIRST; // somebody else wrote there
  }
}

/**
 * @param {(filter: Filter) => void} onChange
 * @returns {{ node: HTMLElement, reset: () => void }} `reset` shows everything again
 */
export function choices(onChange) {
  let now = keptFilter();
  const change = (/** @type {Partial<Filter>} */ part) => {
    now = { ...now, ...part };
    localStorage.setItem(KEPT, JSON.stringify(now));
    onChange(now);
  };
  const options = Object.entries(text.orders).map(([value, name]) =>
    element("option", { value, selected: value === now.order }, name),
  );
  const onorder = (/** @type {any} */ event) => change({ order: event.target.value });
  const order = element("select", { id: "worklist-order", onchange: onorder }, options);
  const progress = Object.entries(text.progress).map(([value, name]) => {
    const onchange = () => change({ progress: /** @type {Filter["progress"]} */ (value) });
    const input = element("input", {
      type: "radio",
      name: "progress",
      value,
      checked: value === now.progress,
      onchange,
    });
    return element("label", {}, input, element("span", {}, name));
  });
  const onhelp = (/** @type {any} */ event) => change({ help: event.target.checked });
  const help = element("input", { type: "checkbox", id: "worklist-help", checked: now.help, onchange: onhelp });
  const legend = element("legend", { class: "visually-hidden" }, text.progressLegend);
  const node = element(
    "div",
    { class: "filters" },
    element("fieldset", { class: "segmented" }, legend, progress),
    element("label", { class: "check" }, help, text.helpOnly),
    element("span", { class: "gap" }),
    element("label", { class: "order" }, text.order, order),
  );
  const reset = () => {
    /** @type {HTMLInputElement} */ (node.querySelector('input[value="all"]')).checked = true;
    /** @type {HTMLInputElement} */ (help).checked = false;
    change({ progress: "all", help: false });
  };
  return { node, reset };
}

/** Whether the arrow keys are the focused control's own: radios are chosen by them. @param {Event} event */
export const ownsArrows = ({ target }) => target instanceof HTMLInputElement && target.type === "radio";
