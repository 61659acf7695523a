// Between a session and the nodes: what is chosen, and drawing all of it when something changed.

import { byId } from "../dom.js";
import { plain, timings } from "../format.js";
import { canvasWith, developed } from "../viewer/contrast.js";
import { fieldOf, largest } from "../viewer/field.js";
import { windowOf } from "../viewer/camera.js";
import { SIGNS, drawBoxes } from "./boxes.js";
import { tick } from "./hints.js";
import { drawAlpha, drawLegend } from "./looks.js";
import { askAgain, askName, drawQuestion, hideAsk } from "./questions.js";
import { conceptOf, drawClasses, drawConcepts, throughPrototypes } from "./results.js";
import { keyOf } from "./session.js";
import { EMPTY, touched, untouched, withAnswer, withBox, withBoxAt, withoutBox } from "./state.js";
import { drawWhy } from "./why.js";

/** @typedef {import("../types.js").Box} Box */

const DRAGGED = "csr:drag-end"; // marks by which the browser tests measure
const SHOWN = "csr:numbers";

export class Desk {
  /**
   * @param {import("./session.js").Session} session @param {import("../viewer/viewer.js").Viewer} viewer
   * @param {ReturnType<typeof import("./sign.js").createSigning>} signing
   */
  constructor(session, viewer, signing) {
    this.session = session;
    this.viewer = viewer;
    this.signing = signing;
    /** @type {HTMLCanvasElement | null} the whole image as it was first seen */
    this.picture = null;
    const { top, concepts } = session.before;
    const weight = (/** @type {import("../types.js").Concept} */ each) => Math.abs(each.contributions[top]);
    this.order = [...concepts].sort((one, other) => weight(other) - weight(one)).map((each) => each.name);
    this.chosen = this.order[0];
    /** @type {string | null} */
    this.forClass = null;
    /** @type {string | null} looked at for a moment */
    this.peeked = null;
    /** @type {number | null} */
    this.selected = null;
    this.measuring = false;
  }

  /** @param {"state" | "answer" | "maps" | "busy"} what */
  changed(what) {
    const { sending, current } = this.session;
    byId("results").setAttribute("aria-busy", String(sending > 0));
    byId("stale").hidden = current || byId("offline").hidden;
    if (what === "state") this.drawState();
    if (what === "maps") this.drawMap();
    if (what !== "answer") return;
    this.render();
    if (this.measuring) {
      this.measuring = false;
      performance.mark(SHOWN);
      performance.measure("csr:drag-to-numbers", DRAGGED, SHOWN);
    }
    if (touched(this.session.state)) for (const step of ["argue", "watch"]) tick(step);
  }

  /** @param {import("../types.js").State} next */
  apply(next) {
    return this.session.apply(next);
  }

  #dragged() {
    performance.mark(DRAGGED);
    this.measuring = true;
  }

  /** A box was drawn by hand. @param {Box} box */
  async draw(box) {
    if (box.kind !== "finding") {
      this.#dragged();
      this.selected = this.session.state.boxes.length;
      return this.apply(withBox(this.session.state, box));
    }
    await this.session.propose(box);
    return this.#focusChip();
  }

  #focusChip() {
    /** @type {HTMLElement | null} */ (document.querySelector("#ask [data-chip]"))?.focus();
  }

  /** A box was moved or resized by hand. @param {number} index @param {Box} box */
  reshape(index, box) {
    const known = this.session.state.boxes[index];
    if (!known) return this.session.propose(box); // the one without a name
    this.#dragged();
    this.selected = index;
    return this.apply(withBoxAt(this.session.state, index, { ...known, ...box }));
  }

  /** @param {number | null} index */
  select(index) {
    if (this.selected === index) return;
    this.selected = index;
    this.drawState();
  }

  removeSelected() {
    const { state, pending } = this.session;
    if (pending && this.selected === state.boxes.length) return this.discard();
    if (this.selected === null || !state.boxes[this.selected]) return false;
    return this.apply(withoutBox(state, this.selected));
  }

  reset() {
    if (!untouched(this.session.state)) this.apply(EMPTY);
  }

  /** @param {number} alpha */
  setAlpha(alpha) {
    this.apply({ ...this.session.state, alpha });
  }

  addBox() {
    const { width, height } = this.session.size;
    const kind = /** @type {HTMLInputElement} */ (document.querySelector('input[name="kind"]:checked')).value;
    const box = { x_min: width * 0.375, y_min: height * 0.375, x_max: width * 0.625, y_max: height * 0.625 };
    if (kind === "finding") this.session.propose({ ...box, kind });
    else this.apply(withBox(this.session.state, { ...box, kind: kind === "ignore" ? kind : "focus" }));
    /** @type {HTMLElement | null} */ (document.querySelector("#box-list li:last-child .box"))?.focus();
  }

  discard() {
    this.session.pending = null;
    this.drawState();
    byId("add-box").focus();
  }

  /** @param {string} name @param {string} said */
  answer(name, said) {
    return this.apply(withAnswer(this.session.state, name, said));
  }

  /** Says it of the chosen concept, or takes it back. @param {string} said */
  toggle(said) {
    const now = conceptOf(this.session.after, this.chosen).answer;
    return this.answer(this.chosen, now === said ? "none" : said);
  }

  /** @param {string} name */
  choose(name) {
    [this.chosen, this.peeked] = [name, null];
    tick("look");
    this.render();
    this.drawMap();
  }

  /** @param {number} step */
  chooseNext(step) {
    const place = this.order.indexOf(this.chosen) + step;
    this.choose(this.order[(place + this.order.length) % this.order.length]);
  }

  /** @param {string | null} name */
  peek(name) {
    if (this.peeked === name) return;
    this.peeked = name;
    this.drawMap();
    this.drawMarks();
  }

  /** @param {ImageData} pixels */
  setPixels(pixels) {
    this.viewer.setPixels(pixels);
    this.picture = canvasWith(developed(pixels, this.viewer.looks.contrast));
    this.render();
  }

  /** @param {import("../viewer/viewer.js").Looks} looks */
  keepLooks(looks) {
    this.session.looks = looks;
    this.session.remember();
    this.drawAsk();
  }

  get shownConcept() {
    return this.peeked ?? this.chosen;
  }

  drawMap() {
    const { maps } = this.session;
    if (!maps) return;
    const index = maps.concepts.indexOf(this.shownConcept);
    const [absent, limit] = [maps.absent[index], maps.limit];
    const field = fieldOf(maps.maps[index]);
    this.viewer.setLayer({ field, frame: maps.frame, absent, limit });
    drawLegend(plain(this.shownConcept), largest(field), absent, limit);
    this.drawMarks();
  }

  drawMarks() {
    const { state, pending, after, maps, openDoubts, openQuestions } = this.session;
    const doubted = new Set(openDoubts.map((each) => each.box));
    const boxes = state.boxes.map((box, index) => {
      const name = box.concept ? ` ${plain(box.concept)}` : "";
      return { ...box, tag: `${SIGNS[box.kind]}${index + 1}${name}${doubted.has(index) ? " ?" : ""}` };
    });
    const all = pending ? [...boxes, { ...pending.box, pending: true, tag: "?" }] : boxes;
    const { peak } = conceptOf(after, this.shownConcept);
    const absent = maps?.absent[maps.concepts.indexOf(this.shownConcept)] ?? -1;
    const look = pending ? null : (openQuestions[0]?.place ?? null);
    if (this.selected !== null && this.selected >= all.length) this.selected = null;
    this.viewer.mark({
      boxes: all,
      peak: peak && { ...peak, faint: peak.similarity <= absent },
      look,
      selected: this.selected,
    });
  }

  drawState() {
    const { session } = this;
    const { state, pending, size } = session;
    this.drawMarks();
    byId("undo").disabled = session.history.past.length === 0;
    byId("redo").disabled = session.history.future.length === 0;
    byId("reset").disabled = untouched(state);
    byId("add-box").disabled = false;
    drawAlpha(state.alpha, session.alpha);
    drawBoxes(state.boxes, pending?.box ?? null, {
      size,
      selected: this.selected,
      onRemove: (index) => this.apply(withoutBox(session.state, index)),
      onMove: (index, box) => this.apply(withBoxAt(session.state, index, box)),
      onSelect: (index) => this.select(index),
      onDiscard: () => this.discard(),
      onPropose: (box) => session.propose(box),
    });
    this.drawAsk();
    this.signing.draw();
  }

  /** One question at a box at a time: what a new one shows, else the first doubt. */
  drawAsk() {
    const { session } = this;
    const [doubt] = session.openDoubts;
    const { pending, state } = session;
    if (pending) {
      const onMore = () => {
        pending.all = true;
        this.drawAsk();
        this.#focusChip();
      };
      const onName = (/** @type {string} */ concept) => {
        this.chosen = concept;
        this.apply(withBox(state, { ...pending.box, concept }));
      };
      askName(pending, this.#onScreen(pending.box), { onName, onMore, onDiscard: () => this.discard() });
    } else if (doubt) {
      const box = state.boxes[doubt.box];
      const onKeep = () => {
        session.insisted.add(keyOf(box));
        session.remember();
        this.drawState();
      };
      const onName = (/** @type {string} */ concept) => this.apply(withBoxAt(state, doubt.box, { ...box, concept }));
      askAgain(doubt, this.#onScreen(box), { onName, onKeep });
    } else hideAsk();
  }

  /** @param {Box} box */
  #onScreen(box) {
    const view = windowOf(this.viewer.looks.camera, this.session.size, this.viewer.screen());
    const down = (/** @type {number} */ y) => (y - view.top) * view.scale;
    return { left: (box.x_min - view.left) * view.scale, top: down(box.y_min), bottom: down(box.y_max) };
  }

  render() {
    const { before, after, changes, state, openQuestions, unknown } = this.session;
    const forClass = this.forClass ?? after.top;
    const said = touched(state);
    this.drawState();
    drawClasses(before, after, forClass, said, (name) => {
      this.forClass = name;
      this.render();
    });
    const through = said && changes ? throughPrototypes(changes, before, after) : "";
    byId("summary").textContent = said && changes ? `${plain(changes.summary)} ${through}`.trim() : "";
    drawConcepts({
      before,
      after,
      order: this.order,
      chosen: this.chosen,
      forClass,
      onChoose: (name) => this.choose(name),
      onPeek: (name) => this.peek(name),
      onAnswer: (name, answer) => this.answer(name, answer),
    });
    const onSkip = (/** @type {string} */ concept) => {
      unknown.add(concept);
      this.session.remember();
      this.render();
    };
    drawQuestion(openQuestions[0], unknown.size > 0, {
      onAnswer: (name, answer) => this.answer(name, answer),
      onSkip,
      onLook: (name) => this.choose(name),
    });
    const [champion] = this.session.app.models;
    drawWhy(conceptOf(after, this.chosen), this.picture ?? null, this.session.size, champion);
    byId("timing").textContent = timings(this.session.timings);
  }
}
