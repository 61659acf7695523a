// Draws what a desk has on it.

import { byId } from "../dom.js";
import { percent, plain, timings } from "../format.js";
import { windowOf } from "../viewer/camera.js";
import { fieldOf, largest } from "../viewer/field.js";
import { SIGNS, drawBoxes } from "./boxes.js";
import { drawAlpha, drawLegend } from "./looks.js";
import { askAgain, askName, drawQuestion, hideAsk } from "./questions.js";
import { conceptOf, drawClasses, drawConcepts, throughPrototypes } from "./results.js";
import { keyOf } from "./session.js";
import { touched, untouched, withBox, withBoxAt, withoutBox } from "./state.js";
import { drawWhy } from "./why.js";

/** @typedef {import("./desk.js").Desk} Desk */
/** @typedef {import("../types.js").Box} Box */

/** The map of the concept that is looked at, and its legend. @param {Desk} desk */
export function drawMap(desk) {
  const { maps } = desk.session;
  if (!maps) return;
  const index = maps.concepts.indexOf(desk.shownConcept);
  const [absent, limit] = [maps.absent[index], maps.limit];
  const field = fieldOf(maps.maps[index]);
  desk.viewer.setLayer({ field, frame: maps.frame, absent, limit });
  drawLegend(plain(desk.shownConcept), largest(field), absent, limit);
  drawMarks(desk);
}

/** What lies over the image. @param {Desk} desk */
export function drawMarks(desk) {
  const { state, pending, after, maps, openDoubts, openQuestions } = desk.session;
  const doubted = new Set(openDoubts.map((each) => each.box));
  const boxes = state.boxes.map((box, index) => {
    const name = box.concept ? ` ${plain(box.concept)}` : "";
    return { ...box, tag: `${SIGNS[box.kind]}${index + 1}${name}${doubted.has(index) ? " ?" : ""}` };
  });
  const all = pending ? [...boxes, { ...pending.box, pending: true, tag: "?" }] : boxes;
  const { peak } = conceptOf(after, desk.shownConcept);
  const absent = maps?.absent[maps.concepts.indexOf(desk.shownConcept)] ?? -1;
  const look = pending ? null : (openQuestions[0]?.place ?? null);
  if (desk.selected !== null && desk.selected >= all.length) desk.selected = null;
  desk.viewer.mark({
    boxes: all,
    peak: peak && { ...peak, faint: peak.similarity <= absent },
    look,
    selected: desk.selected,
  });
}

/** What the reader has said. @param {Desk} desk */
export function drawState(desk) {
  const { session } = desk;
  const { state, pending, size } = session;
  drawMarks(desk);
  byId("undo").disabled = session.history.past.length === 0;
  byId("redo").disabled = session.history.future.length === 0;
  byId("reset").disabled = untouched(state);
  byId("add-box").disabled = false;
  drawAlpha(state.alpha, session.alpha);
  drawBoxes(state.boxes, pending?.box ?? null, {
    size,
    selected: desk.selected,
    onRemove: (index) => desk.apply(withoutBox(session.state, index)),
    onMove: (index, box) => desk.apply(withBoxAt(session.state, index, box)),
    onSelect: (index) => desk.select(index),
    onDiscard: () => desk.discard(),
    onPropose: (box) => session.propose(box),
  });
  drawAsk(desk);
  desk.signing.draw();
}

/** One question at a box at a time: what a new one shows, else the first doubt. @param {Desk} desk */
export function drawAsk(desk) {
  const { session } = desk;
  const [doubt] = session.openDoubts;
  const { pending, state } = session;
  if (pending) {
    const onMore = () => {
      pending.all = true;
      drawAsk(desk);
      desk.focusChip();
    };
    const onName = (/** @type {string} */ concept) => {
      desk.chosen = concept;
      desk.apply(withBox(state, { ...pending.box, concept }));
    };
    askName(pending, onScreen(desk, pending.box), { onName, onMore, onDiscard: () => desk.discard() });
  } else if (doubt) {
    const box = state.boxes[doubt.box];
    const onKeep = () => {
      session.insisted.add(keyOf(box));
      session.remember();
      drawState(desk);
    };
    const onName = (/** @type {string} */ concept) => desk.apply(withBoxAt(state, doubt.box, { ...box, concept }));
    askAgain(doubt, onScreen(desk, box), { onName, onKeep });
  } else hideAsk();
}

/** @param {Desk} desk @param {Box} box */
function onScreen(desk, box) {
  const view = windowOf(desk.viewer.looks.camera, desk.session.size, desk.viewer.screen());
  const down = (/** @type {number} */ y) => (y - view.top) * view.scale;
  return { left: (box.x_min - view.left) * view.scale, top: down(box.y_min), bottom: down(box.y_max) };
}

/** All of it. @param {Desk} desk */
export function render(desk) {
  const { before, after, changes, state, openQuestions, unknown } = desk.session;
  const forClass = desk.forClass ?? after.top;
  const said = touched(state);
  drawState(desk);
  drawClasses(before, after, forClass, said, (name) => {
    desk.forClass = name;
    render(desk);
  });
  const moved = changes?.classes.some((/** @type {any} */ each) => percent(each.before) !== percent(each.after));
  const through = said && moved ? throughPrototypes(changes, before, after) : "";
  byId("summary").textContent = said && changes ? `${plain(changes.summary)} ${through}`.trim() : "";
  drawConcepts({
    before,
    after,
    order: desk.order,
    chosen: desk.chosen,
    forClass,
    onChoose: (name) => desk.choose(name),
    onPeek: (name) => desk.peek(name),
    onAnswer: (name, answer) => desk.answer(name, answer),
  });
  const onSkip = (/** @type {string} */ concept) => {
    unknown.add(concept);
    desk.session.remember();
    render(desk);
  };
  drawQuestion(openQuestions[0], unknown.size > 0, {
    onAnswer: (name, answer) => desk.answer(name, answer),
    onSkip,
    onLook: (name) => desk.choose(name),
  });
  const [champion] = desk.session.app.models;
  drawWhy(conceptOf(after, desk.chosen), desk.picture ?? null, desk.session.size, champion);
  byId("timing").textContent = timings(desk.session.timings);
}
