// One prototype: what it looks like, where it fires, what it decides, which others are like it.

import { button, element, styled, tableHead } from "../dom.js";
import { percent, plain, signed } from "../format.js";
import { strings } from "../strings.js";
import { keyOf } from "./draft.js";
import { places } from "./places.js";

/** @typedef {import("./types.js").Entry} Entry */
/** @typedef {import("./types.js").Detail} Detail */

const text = strings.atlas;

/**
 * The training crops, with or without the map over them.
 * @param {Entry} entry
 * @param {boolean} withMap
 * @param {typeof import("../api.js").cropUrl} cropUrl
 */
export function crops(entry, withMap, cropUrl) {
  const items = entry.sources.map((source, rank) => {
    const src = cropUrl(entry.concept, entry.index, withMap ? { rank, map: true } : { rank });
    const alt = text.cropOf(plain(entry.concept), entry.index, source.study_id);
    const image = element("img", { src, alt, width: 128, height: 128 });
    const similarity = text.similarity(source.similarity.toFixed(2));
    return element(
      "li",
      {},
      image,
      element("span", {}, source.study_id),
      element("span", { class: "quiet" }, similarity),
    );
  });
  return element("ul", { class: "crops", "aria-label": text.crops }, items);
}

/** How much each class leans on it: for to the right, against to the left. @param {Entry} entry */
export function weights(entry) {
  const limit = Math.max(...Object.values(entry.weights).map(Math.abs), 1e-9);
  const rows = Object.entries(entry.weights).map(([name, value]) => {
    const share = (Math.abs(value) / limit) * 50;
    const fill = styled(element("span", { class: `fill ${value < 0 ? "against" : "for"}` }), {
      width: `${share}%`,
      left: `${value < 0 ? 50 - share : 50}%`,
    });
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, plain(name)),
      element("td", { class: "grow" }, element("span", { class: "bar balance", "aria-hidden": "true" }, fill)),
      element("td", { class: "number" }, signed(value)),
    );
  });
  return element(
    "table",
    { class: "weights" },
    element("caption", { class: "visually-hidden" }, text.weights.title),
    element("tbody", {}, rows),
  );
}

/**
 * Studies on which no other prototype says more for the class that the model chose.
 * @param {Detail} detail
 */
export function decides(detail) {
  if (!detail.places) return element("p", { class: "quiet" }, text.noValidation);
  if (!detail.decides.length) return element("p", { class: "quiet" }, text.decides.none);
  const rows = detail.decides.map((each) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, each.study_id),
      element("td", {}, plain(each.class)),
      element("td", { class: "number", title: text.decides.shareWhy }, percent(each.share)),
      element("td", { class: each.right === false ? "wrong" : "" }, text.decides.truth(each.right)),
    ),
  );
  return element("table", { class: "decides" }, tableHead(text.decides.columns), element("tbody", {}, rows));
}

/**
 * The nearest others; of each the reviewer can say that this one is a duplicate of it.
 * @param {Detail} detail
 * @param {(entry: import("./types.js").Prototype) => string} picture
 * @param {(key: string) => void} onChoose
 * @param {(name: string) => void} onDuplicate
 */
export function similar(detail, picture, onChoose, onDuplicate) {
  if (!detail.similar.length)
    return element("p", { class: "quiet" }, detail.places ? text.similar.none : text.noValidation);
  const items = detail.similar.map((other) => {
    const name = `${plain(other.concept)} ${other.index}`;
    const image = element("img", { src: picture(other), alt: "", width: 56, height: 56 });
    const cosine = element("small", { class: "quiet" }, text.similar.cosine(other.cosine.toFixed(2)));
    const choose = button([image, element("span", {}, name), cosine], () => onChoose(keyOf(other)), {
      "data-key": `similar ${keyOf(other)}`,
    });
    const merge = button(
      [text.similar.merge, element("span", { class: "visually-hidden" }, text.similar.mergeWith(name))],
      () => onDuplicate(name),
      { class: "quiet-button", "data-key": `merge ${keyOf(other)}` },
    );
    return element("li", {}, choose, detail.alive && merge);
  });
  return element("ul", { class: "similar" }, items);
}

/** @param {Detail} detail */
export const fires = (detail) =>
  detail.places ? places(detail.places) : element("p", { class: "quiet" }, text.noValidation);
