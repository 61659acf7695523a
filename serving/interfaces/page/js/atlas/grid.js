// The prototypes, concept by concept, each as a card: its nearest training crop, how much it is used and relied on, and
// what was said of it.

import { element, styled } from "../dom.js";
import { percent, plain } from "../format.js";
import { strings } from "../strings.js";
import { keyOf } from "./draft.js";

/** @typedef {import("./types.js").Entry} Entry */

/** What the grid shows beside the entries.
 * @typedef {object} Shown
 * @property {string} chosen the key of the card whose details are open
 * @property {Set<string>} picked keys of the cards that are picked for a word on all of them
 * @property {(entry: Entry) => { name: string, text: string }} mark what was said of one: a class name and a word
 * @property {(entry: Entry) => string} picture the address of its crop
 * @property {(key: string) => void} onChoose
 * @property {(key: string, picked: boolean) => void} onPick
 */

const text = strings.atlas;

/**
 * @param {Entry[]} entries those that are left by the filter, in their order
 * @param {Shown} shown
 * @returns {HTMLElement[]} one section a concept
 */
export function grid(entries, shown) {
  const concepts = [...new Set(entries.map((entry) => entry.concept))];
  const most = {
    usage: Math.max(...entries.map((each) => each.usage), 1e-9),
    reliance: Math.max(...entries.map((each) => each.reliance), 1e-9),
  };
  return concepts.map((concept) => {
    const cards = entries.filter((entry) => entry.concept === concept).map((entry) => card(entry, shown, most));
    const id = `concept-${concept.replaceAll(/\W+/g, "-")}`;
    return element(
      "section",
      { class: "concept", "aria-labelledby": id },
      element("h3", { id }, plain(concept)),
      element("ul", { class: "cards" }, cards),
    );
  });
}

/** @param {Entry} entry @param {Shown} shown @param {{ usage: number, reliance: number }} most */
function card(entry, shown, most) {
  const key = keyOf(entry);
  const mark = shown.mark(entry);
  const name = text.prototype(entry.index);
  const image = element("img", { src: shown.picture(entry), alt: "", width: 96, height: 96, loading: "lazy" });
  const choose = element(
    "button",
    {
      type: "button",
      class: "choose",
      "data-key": key,
      "aria-pressed": String(key === shown.chosen),
      onclick: () => shown.onChoose(key),
    },
    image,
    element(
      "span",
      { class: "name" },
      element("span", { class: "visually-hidden" }, `${plain(entry.concept)}, `),
      name,
    ),
    measure(text.usage, entry.usage, most.usage),
    measure(text.reliance, entry.reliance, most.reliance),
    element("span", { class: `mark ${mark.name}` }, mark.text),
  );
  const pick = element("input", {
    type: "checkbox",
    checked: shown.picked.has(key),
    "aria-label": text.pick(plain(entry.concept), entry.index),
    "data-pick": key,
    onchange: (/** @type {any} */ event) => shown.onPick(key, event.target.checked),
  });
  return element(
    "li",
    { class: `card-of ${mark.name}${entry.alive ? "" : " gone"}` },
    choose,
    entry.alive && element("label", { class: "pick" }, pick), // of what is gone there is nothing to say
  );
}

/** @param {{ name: string, why: string }} about @param {number} value @param {number} most of all that are shown */
function measure({ name, why }, value, most) {
  const bar = element(
    "span",
    { class: "bar" },
    styled(element("span", { class: "fill" }), { width: `${(value / most) * 100}%` }),
  );
  return element(
    "span",
    { class: "measure", title: why },
    element("small", {}, name),
    bar,
    element("small", { class: "number" }, percent(value)),
  );
}
