// Draws a prediction, and what an interaction changed in it.

import { byId, button, element, refill, styled } from "../dom.js";
import { percent, plain, signed } from "../format.js";
import { strings } from "../strings.js";

/** @typedef {import("../types.js").Prediction} Prediction */
/** @typedef {import("../types.js").Concept} Concept */

const text = strings.reading.results;

/** Where a study can have several classes each has a threshold. What is found from 30 % on never reads "30 %" while it is
 * not. @param {import("../types.js").ClassScore} score */
const chance = ({ probability, threshold }) =>
  threshold !== null && probability < threshold && percent(probability) === percent(threshold)
    ? `< ${percent(threshold)}`
    : percent(probability);

/**
 * A bar from 0 to 1 with an optional mark where the value was before, and one at the threshold that decides, if any does.
 * @param {number} value @param {number} [before] @param {number | null} threshold
 */
function bar(value, before, threshold = null) {
  const node = element("span", { class: threshold === null ? "bar" : "bar decides", "aria-hidden": "true" });
  node.append(styled(element("span", { class: "fill" }), { width: `${value * 100}%` }));
  if (threshold !== null) styled(node, { "--threshold": `${Math.round(threshold * 100)}%` });
  if (before !== undefined && Math.abs(before - value) > 0.005)
    node.append(styled(element("span", { class: "mark" }), { left: `${before * 100}%` }));
  return node;
}

/** A bar to the right for and to the left against, from the middle. @param {number} value @param {number} limit */
function balance(value, limit) {
  const share = Math.min(Math.abs(value) / limit, 1) * 50;
  const fill = element("span", { class: value < 0 ? "fill against" : "fill for" });
  return element(
    "span",
    { class: "bar balance", "aria-hidden": "true" },
    styled(fill, { width: `${share}%`, left: `${value < 0 ? 50 - share : 50}%` }),
  );
}

/** @param {number} delta @param {string} shown */
const change = (delta, shown) => element("span", { class: `delta ${delta < 0 ? "down" : "up"}` }, shown);

/** @param {string} id @param {string | false} message */
function note(id, message) {
  byId(id).textContent = message || "";
  byId(id).hidden = !message;
}

/**
 * Where a study can have several classes each is decided on its own, so the notes name the one it is least sure of.
 * @param {Prediction} prediction
 */
export function drawNotes(prediction) {
  const several = prediction.task === "multilabel";
  // how far a probability is on its way from the threshold to 0 or to 1
  const doubt = (/** @type {any} */ { probability: p, threshold: t }) => (p < t ? (t - p) / t : (p - t) / (1 - t));
  const least = prediction.classes.reduce((one, other) => (several && doubt(other) < doubt(one) ? other : one));
  const doubtful = `${plain(least.name)} (${chance(least)})`;
  const why = prediction.fits.action === "abstain" ? text.misfit : several ? text.unsureOf(doubtful) : text.unsure;
  note("abstains", prediction.abstains && why);
  note(
    "help",
    prediction.asks_for_help && (several ? text.helpWith(doubtful, percent(least.threshold ?? 0)) : text.help),
  );
  note(
    "found",
    several && (prediction.found.length ? text.found(prediction.found.map(plain).join(", ")) : text.nothing),
  );
}

/**
 * @param {Prediction} before @param {Prediction} after @param {string} chosen @param {boolean} moved whether the reader
 *   said anything @param {(name: string) => void} onChoose
 */
export function drawClasses(before, after, chosen, moved, onChoose) {
  drawNotes(after);
  const several = after.task === "multilabel";
  const rows = after.classes.map((each, index) => {
    const was = before.classes[index].probability;
    const delta = Math.round(each.probability * 100) - Math.round(was * 100);
    const found = after.found.includes(each.name);
    const tick = several &&
      found && [element("span", { class: "tick", role: "img", "aria-label": "found:" }, "✓"), " "];
    const parts = [
      element("span", { class: "name" }, ...[tick || []].flat(), plain(each.name)),
      bar(each.probability, moved ? was : undefined, each.threshold),
      element("span", { class: "number" }, chance(each)),
      element("span", { class: "moved" }, moved && delta !== 0 && change(delta, signed(delta, 0))),
    ];
    const state = { class: found ? "class found" : "class", "aria-pressed": String(each.name === chosen) };
    return button(parts, () => onChoose(each.name), { ...state, "data-class": each.name, "data-key": each.name });
  });
  refill(byId("classes"), ...rows);
}

/**
 * Three states of a concept: confirmed, not asked, rejected.
 * @param {Concept} concept @param {(name: string, answer: string) => void} onAnswer
 */
function answers({ name, answer }, onAnswer) {
  const states = [
    ["confirmed", "✓", text.confirm(plain(name))],
    ["none", "·", text.unsay(plain(name))],
    ["rejected", "✕", text.reject(plain(name))],
  ];
  const choices = states.map(([value, mark, label]) => {
    const state = { name: `answer ${name}`, value, checked: value === answer, "data-answer": name };
    const input = element("input", {
      type: "radio",
      "aria-label": label,
      "data-key": `answer ${name} ${value}`,
      onchange: () => onAnswer(name, value),
      ...state,
    });
    return element("label", { title: label }, input, element("span", { "aria-hidden": "true" }, mark));
  });
  return element(
    "div",
    { class: "segmented answers", role: "radiogroup", "aria-label": text.word(plain(name)) },
    ...choices,
  );
}

/**
 * @typedef {object} Table
 * @property {Prediction} before @property {Prediction} after
 * @property {string[]} order of the rows
 * @property {string} chosen @property {string} forClass
 * @property {(name: string) => void} onChoose @property {(name: string | null) => void} onPeek
 * @property {(name: string, answer: string) => void} onAnswer
 */

/** @param {Prediction} prediction @param {string} name @returns {Concept} */
export const conceptOf = (prediction, name) =>
  /** @type {Concept} */ (prediction.concepts.find((each) => each.name === name));

/** @param {Table} table */
export function drawConcepts({ before, after, order, chosen, forClass, onChoose, onPeek, onAnswer }) {
  const all = [...before.concepts, ...after.concepts].map((each) => Math.abs(each.contributions[forClass]));
  const limit = Math.max(...all, 1e-6);
  byId("for-class").textContent = text.speaks(plain(forClass));
  const rows = order.map((name) => {
    const [now, was] = [conceptOf(after, name), conceptOf(before, name)];
    const value = now.contributions[forClass];
    const delta = value - was.contributions[forClass];
    const choose = button(plain(name), () => onChoose(name), {
      class: "concept",
      "aria-pressed": String(name === chosen),
      "data-concept": name,
      "data-key": `concept ${name}`,
      onfocus: () => onPeek(name),
      onblur: () => onPeek(null),
    });
    const moved = Math.abs(delta) >= 0.005 && change(delta, signed(delta));
    const row = {
      class: [name === chosen && "chosen", now.answer].filter(Boolean).join(" "),
      onmouseenter: () => onPeek(name),
      onmouseleave: () => onPeek(null),
    };
    return element(
      "tr",
      row,
      element("th", { scope: "row" }, choose),
      element(
        "td",
        { class: "present" },
        bar(now.probability, was.probability),
        element("span", { class: "number" }, percent(now.probability)),
      ),
      element(
        "td",
        { class: "speaks" },
        balance(value, limit),
        element("span", { class: "number" }, signed(value)),
        element("span", { class: "moved" }, moved),
      ),
      element("td", {}, answers(now, onAnswer)),
    );
  });
  refill(byId("concepts"), ...rows);
}

/**
 * Which prototypes a change came through: those nearest before and after, of the concepts that moved most.
 * @param {any} changes @param {Prediction} before @param {Prediction} after
 */
export function throughPrototypes(changes, before, after) {
  const parts = changes.concepts
    .filter((/** @type {any} */ each) => each.cause !== "none")
    .slice(0, 2)
    .map((/** @type {any} */ { name }) => {
      const [was] = conceptOf(before, name).exemplars;
      const [now] = conceptOf(after, name).exemplars;
      const concept = plain(name);
      if (!was) return text.raised(concept);
      if (!now) return text.gone(concept, was.index, was.score.toFixed(2));
      if (now.index !== was.index) return text.swapped(concept, was.index, now.index);
      if (now.score === was.score) return text.raised(concept);
      return text.moved(concept, was.index, was.score.toFixed(2), now.score.toFixed(2));
    });
  return parts.length ? text.through(parts.join(", ")) : "";
}
