// Where a reviewer says whether prototypes stay: keep or reject, why, and a note. What is said here is a draft until it is
// signed.

import { button, element } from "../dom.js";
import { when } from "../format.js";
import { strings } from "../strings.js";

/** @typedef {import("./types.js").Word} Word */
/** @typedef {import("./types.js").Review} Review */

const text = strings.atlas.verdict;

/** @type {Word} */
const NOTHING = { verdict: "keep", reason: "none", comment: "" };

/**
 * The form for one prototype, or for several at once.
 * @param {{ title: string, id: string, keys: boolean }} about what it is about, and whether the keys k and r mean it
 * @param {Word | undefined} word the draft so far; of several: that of all, if they have the same
 * @param {(word: Word | null, quietly?: boolean) => void} onSay null takes the draft back; quietly: draw nothing anew
 */
export function verdictForm({ title, id, keys }, word, onSay) {
  const now = { ...(word ?? NOTHING) };
  const choose = (/** @type {Word["verdict"]} */ verdict, /** @type {string} */ key) =>
    button(
      keys ? [text[verdict], " ", element("kbd", { "aria-hidden": "true" }, key)] : text[verdict],
      () => onSay({ ...now, verdict, reason: verdict === "keep" ? "none" : now.reason }),
      { class: `verdict ${verdict}`, "aria-pressed": String(word?.verdict === verdict), "data-key": verdict },
    );
  const take = word && button(text.clear, () => onSay(null), { class: "quiet-button", "data-key": "clear" });
  const node = element(
    "form",
    { class: "verdict-form", "aria-label": title },
    element("div", { class: "verdicts" }, choose("keep", "k"), choose("prune", "r"), take),
  );
  node.addEventListener("submit", (event) => event.preventDefault());
  if (!word) return node;
  if (word.verdict === "prune") node.append(reasons(now.reason, (reason) => onSay({ ...now, reason })));
  const note = /** @type {HTMLInputElement} */ (
    element("input", {
      type: "text",
      id: `${id}-comment`,
      maxlength: 1000,
      value: now.comment,
      "data-key": "comment",
      placeholder: text.commentHint,
    })
  );
  note.addEventListener("input", () => {
    now.comment = note.value;
    onSay({ ...now }, true);
  });
  node.append(element("label", { for: `${id}-comment`, class: "comment" }, text.comment, note));
  return node;
}

/** @param {string} chosen @param {(reason: Word["reason"]) => void} onChoose */
function reasons(chosen, onChoose) {
  const choices = Object.entries(text.reasons).map(([value, name]) => {
    const onchange = () => onChoose(/** @type {Word["reason"]} */ (value));
    const input = element("input", {
      type: "radio",
      name: "reason",
      value,
      checked: value === chosen,
      onchange,
      "data-key": `reason ${value}`,
    });
    return element("label", {}, input, " ", name);
  });
  return element("fieldset", { class: "reasons" }, element("legend", {}, text.why), choices);
}

/**
 * What is on record about a prototype: who said what, and what of it counts.
 * @param {Review | undefined} review
 * @param {boolean} pruned the model in service no longer has it
 */
export function onRecord(review, pruned) {
  const parts = [];
  if (pruned) parts.push(element("p", { class: "gone" }, text.gone));
  if (!review) return [...parts, element("p", { class: "quiet" }, text.unreviewed)];
  const { name, why } = text.status[review.status];
  const words = review.said.map(({ reviewer, verdict, reason, comment, at }) => {
    const because = reason === "none" ? "" : ` (${text.reasons[reason]})`;
    const quote = comment ? [" ", element("q", {}, comment)] : [];
    return element("li", {}, text.said(reviewer, text.past[verdict], because, when(at)), ...quote);
  });
  return [
    ...parts,
    element(
      "p",
      {},
      element("span", { class: `mark ${review.status} ${review.verdict}` }, name),
      " ",
      element("span", { class: "quiet" }, why),
    ),
    element("ul", {}, words),
  ];
}
