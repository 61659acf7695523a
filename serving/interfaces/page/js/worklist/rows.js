// One study of the worklist as a row of the table: what it looks like, what the model says and whether it asks for help,
// what has been done. The whole row is one link.

import { element, styled } from "../dom.js";
import { brief, percent, plain, when } from "../format.js";
import { strings } from "../strings.js";

/** @typedef {import("./types.js").WorklistItem} WorklistItem */

const text = strings.worklist;

/**
 * @param {WorklistItem} item
 * @param {string} thumbnail its address
 * @param {string} name of its file, if it was sent from here; else empty
 */
export function row(item, thumbnail, name) {
  const image = element("img", { src: thumbnail, alt: "", width: 64, height: 64, loading: "lazy", decoding: "async" });
  const link = { href: `#/read/${item.digest}`, class: "row-link", "data-key": item.digest };
  const about = [...(name ? [brief(item.digest)] : []), text.added(when(item.added_at))].join(" · ");
  return element(
    "tr",
    { class: `row ${item.mine}`, "data-study": item.digest },
    element("td", { class: "thumbnail" }, image),
    element(
      "th",
      { scope: "row" },
      element("a", link, name || text.study(brief(item.digest))),
      element("small", { class: "quiet" }, about),
    ),
    element("td", { class: "says" }, says(item)),
    element("td", { class: "asks" }, asks(item)),
    element("td", { class: "done" }, done(item)),
  );
}

/** @param {WorklistItem} item */
function says({ found, confidence, top }) {
  const name = element("span", { class: "verdict-name" }, (found ?? [top]).map(plain).join(", ") || text.nothingFound);
  if (confidence === null) return [name];
  const bar = element(
    "span",
    { class: "bar", "aria-hidden": "true" },
    styled(element("span", { class: "fill" }), { width: `${confidence * 100}%` }),
  );
  const number = element("span", { class: "number" }, percent(confidence));
  return [name, element("span", { class: "confidence", title: text.confidence(plain(top)) }, bar, number)];
}

/**
 * What the model asks of the reader, the gravest first.
 * @param {WorklistItem} item
 */
function asks({ fits, abstains, asks_for_help }) {
  const mark = (/** @type {"misfit" | "abstains" | "help"} */ name) =>
    element("span", { class: `mark is-${name}`, title: text.marks[name].why }, text.marks[name].name);
  const marks = [];
  if (fits === false) marks.push(mark("misfit"));
  else if (abstains) marks.push(mark("abstains"));
  if (asks_for_help) marks.push(mark("help"));
  return marks.length ? marks : [element("span", { class: "quiet" }, text.sure)];
}

/** @param {WorklistItem} item */
function done({ mine, readers, agreement }) {
  const others = readers - (mine === "signed" ? 1 : 0);
  const said = agreement === "same" || agreement === "differ" ? text.agreement[agreement] : "";
  return [
    element("span", { class: `state ${mine}` }, text.mine[mine]),
    others > 0 && element("small", { class: "quiet" }, text.others(others)),
    said !== "" && element("small", { class: `agreement ${agreement}` }, said),
  ];
}
