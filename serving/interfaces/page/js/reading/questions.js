// What the page asks the reader: what a new box shows, whether a name is right, and the next question. It offers and
// never assumes: nothing is said of the study until the reader has said it.

import { button, byId, element, refill, styled } from "../dom.js";
import { nonbreaking, percent, plain } from "../format.js";
import { strings } from "../strings.js";

/** @typedef {{ name: string, probability: number | null }} Guess */
/** @typedef {{ left: number, top: number, bottom: number }} Place of a box, in pixels of the well */

const OFFERED = 3; // of the concepts that a box may be about
const GAP = 6; // pixels between a question and its box
const text = strings.reading;

/** The chip of a concept, with how likely the box is about it. @param {Guess} guess @param {(name: string) => void} onName */
function chip({ name, probability }, onName) {
  const likely =
    probability === null ? [] : [element("small", {}, probability < 0.005 ? "< 1 %" : percent(probability))];
  return button([plain(name), ...likely], () => onName(name), {
    class: "chip",
    "data-chip": name,
    "data-key": `chip ${name}`,
  });
}

/** Puts the question at its box: below it, above it, or at the edge with more room, and always whole on the image.
 * @param {HTMLElement} node @param {Place} box */
function place(node, box) {
  styled(node, { left: "0" }); // or its width is what is left beside the old place
  const { clientWidth, clientHeight } = /** @type {HTMLElement} */ (node.parentElement);
  const [right, down] = [clientWidth - node.offsetWidth - GAP, clientHeight - node.offsetHeight - GAP];
  const below = box.bottom + GAP;
  const above = box.top - node.offsetHeight - GAP;
  const edge = below < clientHeight - above - node.offsetHeight ? down : GAP;
  const top = below <= down ? below : above >= GAP ? above : edge;
  styled(node, { left: `${Math.max(Math.min(box.left, right), GAP)}px`, top: `${Math.max(top, GAP)}px` });
}

/** @param {Place} box @param {string} question @param {...HTMLElement} answers */
function show(box, question, ...answers) {
  const node = byId("ask");
  if (byId("ask-text").textContent !== question) byId("ask-text").textContent = question;
  refill(byId("ask-answers"), ...answers);
  node.hidden = false;
  place(node, box);
}

export const hideAsk = () => {
  byId("ask").hidden = true;
};

/**
 * What is it? `ranked` are the concepts by how likely the box is about each; null while that is not known yet, and with
 * probabilities of null where the model cannot tell.
 * @param {import("./session.js").Pending} pending @param {Place} box
 * @param {{ onName: (name: string) => void, onMore: () => void, onDiscard: () => void }} on
 */
export function askName({ ranked, all }, box, { onName, onMore, onDiscard }) {
  const discard = button(text.ask.discard, onDiscard, { class: "quiet-button", "data-key": "discard" });
  if (ranked === null) return show(box, text.ask.what, discard);
  const guesses = all ? ranked : ranked.slice(0, OFFERED);
  const more =
    all || guesses.length === ranked.length
      ? []
      : [button(text.ask.more, onMore, { class: "quiet-button", id: "ask-more" })];
  return show(box, text.ask.what, ...guesses.map((each) => chip(each, onName)), ...more, discard);
}

/**
 * A name that the evidence inside the box contradicts.
 * @param {import("../types.js").Doubt} doubt @param {Place} box
 * @param {{ onName: (name: string) => void, onKeep: () => void }} on
 */
export function askAgain(doubt, box, { onName, onKeep }) {
  const keep = button(text.ask.keep(plain(doubt.concept)), onKeep, { class: "quiet-button", id: "ask-keep" });
  return show(box, nonbreaking(plain(doubt.message)), ...doubt.speaks_for.map((each) => chip(each, onName)), keep);
}

/**
 * The next question that is worth asking, or that there is none.
 * @param {import("../types.js").Question | undefined} question @param {boolean} skipped whether one was left unanswered
 * @param {{ onAnswer: (concept: string, answer: string) => void, onSkip: (concept: string) => void, onLook: (concept: string) => void }} on
 */
export function drawQuestion(question, skipped, { onAnswer, onSkip, onLook }) {
  const words = text.question;
  byId("question-text").textContent = question
    ? words.ask(plain(question.concept))
    : skipped
      ? words.noOther
      : words.none;
  byId("question-text").classList.toggle("asked", Boolean(question));
  byId("question-reason").textContent = question ? nonbreaking(plain(question.reason)) : "";
  byId("question-answers").hidden = !question;
  if (!question) return byId("question-answers").replaceChildren();
  const { concept, effect, place: look } = question;
  const choice = (
    /** @type {string} */ id,
    /** @type {string} */ label,
    /** @type {() => void} */ run,
    quiet = false,
  ) => button(label, run, { id, "data-key": id, class: quiet ? "quiet-button" : null });
  return refill(
    byId("question-answers"),
    choice("question-yes", words.yes, () => onAnswer(concept, "confirmed")),
    choice("question-no", words.no, () => onAnswer(concept, "rejected")),
    choice("question-skip", words.unknown, () => onSkip(concept)),
    ...(look ? [choice("question-look", words.where, () => onLook(concept), true)] : []),
    element("span", { class: "quiet bits", title: words.bits }, `${effect.toFixed(2)} bits`),
  );
}
