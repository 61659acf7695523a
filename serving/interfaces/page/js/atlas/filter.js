// Which prototypes are shown, and in which order within their concept.

import { element } from "../dom.js";
import { strings } from "../strings.js";

/** @typedef {import("./types.js").Entry} Entry */
/** @typedef {{ draft?: import("./types.js").Word, review?: import("./types.js").Review }} Said */

const text = strings.atlas.filter;

/** @type {Record<string, (entry: Entry, said: Said) => boolean>} */
const WANTED = {
  live: (entry) => entry.alive,
  open: (entry, { draft, review }) => entry.alive && !draft && !review,
  draft: (_, { draft }) => draft !== undefined,
  proposed: (_, { review }) => review?.status === "proposed" || review?.status === "disputed",
  rejected: (entry, { review }) => !entry.alive || review?.verdict === "prune",
  all: () => true,
};

/** @type {Record<string, (one: Entry, other: Entry) => number>} */
const ORDERS = {
  index: (one, other) => one.index - other.index,
  reliance: (one, other) => other.reliance - one.reliance,
  usage: (one, other) => other.usage - one.usage,
};

/** @param {() => void} onChange */
export function filters(onChange) {
  let [wanted, order] = ["live", "index"];
  const choice = Object.entries(text.wanted).map(([value, name]) => {
    const onchange = () => {
      wanted = value;
      onChange();
    };
    const input = element("input", { type: "radio", name: "wanted", value, checked: value === wanted, onchange });
    return element("label", {}, input, element("span", {}, name));
  });
  const onorder = (/** @type {any} */ event) => {
    order = event.target.value;
    onChange();
  };
  const options = Object.entries(text.orders).map(([value, name]) => element("option", { value }, name));
  const legend = element("legend", { class: "visually-hidden" }, text.legend);
  const node = element(
    "div",
    { class: "filters" },
    element("fieldset", { class: "segmented" }, legend, choice),
    element("span", { class: "gap" }),
    element(
      "label",
      { class: "order" },
      text.order,
      element("select", { id: "atlas-order", onchange: onorder }, options),
    ),
  );

  /**
   * @param {Entry[]} entries
   * @param {(entry: Entry) => Said} said
   */
  function apply(entries, said) {
    const concepts = [...new Set(entries.map((entry) => entry.concept))]; // their order is the model's
    const left = entries.filter((entry) => WANTED[wanted](entry, said(entry)));
    return concepts.flatMap((concept) => left.filter((entry) => entry.concept === concept).sort(ORDERS[order]));
  }

  return { node, apply };
}
