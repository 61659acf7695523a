// What the page asks the reader: what a new box shows, whether a name is right, and the next question. It offers and
// never assumes: nothing is said of the study until the reader has said it.

import { element, percent, plain } from "./results.js";

const byId = (id) => document.getElementById(id);
const OFFERED = 3; // of the concepts that a box may be about
const GAP = 6; // pixels between a question and its box

const nonbreaking = (text) => text.replaceAll(" %", "\u00a0%");
const button = (text, onclick, attributes = {}) => element("button", { type: "button", onclick, ...attributes }, ...[text].flat());

// The chip of a concept, with how likely the box is about it.
function chip({ name, probability }, onName) {
  const likely = probability === null ? [] : [element("small", {}, probability < 0.005 ? "< 1 %" : percent(probability))];
  return button([plain(name), ...likely], () => onName(name), { class: "chip", "data-chip": name });
}

// Puts the question at its box: below it, above it, or at the edge with more room, and always whole on the image.
function place(node, box, { width, height }) {
  node.style.setProperty("left", "0"); // or its width is what is left beside the old place
  const { clientWidth, clientHeight } = node.parentElement;
  const [right, down] = [clientWidth - node.offsetWidth - GAP, clientHeight - node.offsetHeight - GAP];
  const below = (box.y_max / height) * clientHeight + GAP;
  const above = (box.y_min / height) * clientHeight - node.offsetHeight - GAP;
  const edge = below < clientHeight - above - node.offsetHeight ? down : GAP;
  node.style.setProperty("left", `${Math.max(Math.min((box.x_min / width) * clientWidth, right), GAP)}px`);
  node.style.setProperty("top", `${below <= down ? below : above >= GAP ? above : edge}px`);
}

function show(box, size, question, ...answers) {
  const node = byId("ask");
  byId("ask-text").textContent = question;
  byId("ask-answers").replaceChildren(...answers);
  node.hidden = false;
  place(node, box, size);
}

export const hideAsk = () => {
  byId("ask").hidden = true;
};

// What is it? `ranked` are the concepts by how likely the box is about each; null while that is not known yet, and with
// probabilities of null where the model cannot tell.
export function askName({ box, ranked, all }, size, { onName, onMore, onDiscard }) {
  const discard = button("Discard", onDiscard, { class: "quiet-button" });
  if (ranked === null) return show(box, size, "What is it?", discard);
  const guesses = all ? ranked : ranked.slice(0, OFFERED);
  const more = all || guesses.length === ranked.length ? [] : [button("Something else…", onMore, { class: "quiet-button", id: "ask-more" })];
  return show(box, size, "What is it?", ...guesses.map((each) => chip(each, onName)), ...more, discard);
}

// A name that the evidence inside the box contradicts.
export function askAgain(doubt, box, size, { onName, onKeep }) {
  const keep = button(`It is ${plain(doubt.concept)}`, onKeep, { class: "quiet-button", id: "ask-keep" });
  return show(box, size, nonbreaking(plain(doubt.message)), ...doubt.speaks_for.map((each) => chip(each, onName)), keep);
}

// The next question that is worth asking, or that there is none.
export function drawQuestion(question, skipped, { onAnswer, onSkip, onLook }) {
  byId("question-text").textContent = question
    ? `Is ${plain(question.concept)} present?`
    : skipped
      ? "No other question is worth asking."
      : "No question is worth asking: no answer is expected to tell much more.";
  byId("question-text").classList.toggle("asked", Boolean(question));
  byId("question-reason").textContent = question ? nonbreaking(plain(question.reason)) : "";
  byId("question-answers").hidden = !question;
  if (!question) return;
  const look = question.place ? [button("Show where", () => onLook(question), { class: "quiet-button", id: "question-look" })] : [];
  const bits = `${question.effect.toFixed(2)} bits`;
  byId("question-answers").replaceChildren(
    button("Yes", () => onAnswer(question, "confirmed"), { id: "question-yes" }),
    button("No", () => onAnswer(question, "rejected"), { id: "question-no" }),
    button("Don’t know", () => onSkip(question), { id: "question-skip" }),
    ...look,
    element("span", { class: "quiet bits", title: "What the answer is expected to tell about the classes" }, bits),
  );
}
