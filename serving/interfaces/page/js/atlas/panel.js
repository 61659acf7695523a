// The chosen prototype, whole: crops, the reviewer's word, what is on record, and what the server knows of it.

import { element, refill } from "../dom.js";
import { plain } from "../format.js";
import { strings } from "../strings.js";
import { explain } from "../worklist/queue.js";
import { crops, decides, fires, similar, weights } from "./detail.js";
import { keyOf } from "./draft.js";
import { onRecord, verdictForm } from "./verdict.js";

/** @typedef {import("./types.js").Entry} Entry */
/** @typedef {import("./types.js").Detail} Detail */
/** @typedef {import("./types.js").Word} Word */

/** What is said of the prototype that is shown, and whether the keys of verdicts mean it.
 * @typedef {{ word: Word | undefined, review: import("./types.js").Review | undefined, keys: boolean }} Said
 */

const text = strings.atlas;

/**
 * @param {import("../types.js").App} app
 * @param {(word: Word | null, quietly?: boolean) => void} onSay
 * @param {(key: string) => void} onChoose another prototype
 */
export function panel(app, onSay, onChoose) {
  const node = element("section", { class: "panel detail", "aria-labelledby": "detail-title" });
  /** @type {Map<string, Detail | string>} */
  const details = new Map(); // or why there are none
  /** @type {Entry | null} */
  let entry = null;
  /** @type {Said} */
  let said = { word: undefined, review: undefined, keys: true };
  let [withMap, closed] = [false, false];

  /** @param {Entry} shown @param {Said} about */
  function show(shown, about) {
    const another = entry !== shown;
    [entry, said] = [shown, about];
    draw();
    if (another && typeof (details.get(keyOf(shown)) ?? "") === "string") void ask(shown);
  }

  /** @param {Entry} about */
  async function ask(about) {
    details.set(keyOf(about), await app.api.prototype(about.concept, about.index).catch(explain));
    if (!closed && about === entry) draw();
  }

  function toggleMap() {
    withMap = !withMap;
    draw();
  }

  function draw() {
    if (!entry) return;
    const detail = details.get(keyOf(entry));
    const noMaps = typeof detail === "object" && !detail.maps;
    const picture = (/** @type {import("./types.js").Prototype} */ other) =>
      app.api.cropUrl(other.concept, other.index);
    const map = element("input", {
      type: "checkbox",
      checked: withMap && !noMaps,
      disabled: noMaps,
      onchange: toggleMap,
      "data-key": "map",
    });
    const duplicate = (/** @type {string} */ name) =>
      onSay({ verdict: "prune", reason: "duplicate", comment: text.similar.sameAs(name) });
    const about = { title: text.verdict.title, id: "verdict", keys: said.keys };
    refill(
      node,
      element("h2", { id: "detail-title" }, `${plain(entry.concept)}, ${text.prototype(entry.index)}`),
      element("label", { class: "check" }, map, noMaps ? text.noMap : text.map),
      crops(entry, withMap && typeof detail === "object" && detail.maps, app.api.cropUrl),
      entry.alive ? verdictForm(about, said.word, onSay) : "",
      element("div", { class: "record" }, ...onRecord(said.review, !entry.alive)),
      section(text.weights, weights(entry)),
      section(text.places, known(detail, fires)),
      section(
        text.similar,
        known(detail, (one) => similar(one, picture, onChoose, duplicate)),
      ),
      section(text.decides, known(detail, decides)),
    );
  }

  return { node, show, toggleMap, close: () => (closed = true) };
}

/** @param {{ title: string, why: string }} about @param {HTMLElement} content */
const section = ({ title, why }, content) =>
  element("section", {}, element("h3", {}, title), element("p", { class: "quiet" }, why), content);

/** @param {Detail | string | undefined} detail @param {(detail: Detail) => HTMLElement} draw */
function known(detail, draw) {
  if (detail === undefined) return element("p", { class: "quiet" }, text.waiting);
  return typeof detail === "string" ? element("p", { class: "failed" }, detail) : draw(detail);
}
