// A reader's desk: what is chosen on it, what they do, and drawing it anew (`screen.js`) when something changed.

import { byId } from "../dom.js";
import { canvasWith, developed } from "../viewer/contrast.js";
import { tick } from "./hints.js";
import { conceptOf } from "./results.js";
import { drawAsk, drawMap, drawMarks, drawState, render } from "./screen.js";
import { EMPTY, touched, untouched, withAnswer, withBox, withBoxAt, withoutBox } from "./state.js";

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
    if (what === "state") drawState(this);
    if (what === "maps") drawMap(this);
    if (what !== "answer") return;
    render(this);
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
    this.selected = this.session.state.boxes.length;
    await this.session.propose(box);
    return this.focusChip();
  }

  focusChip() {
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
    drawState(this);
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
    this.session.remember();
    drawState(this);
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
    render(this);
    drawMap(this);
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
    drawMap(this);
    drawMarks(this);
  }

  /** @param {ImageData} pixels */
  setPixels(pixels) {
    this.viewer.setPixels(pixels);
    this.picture = canvasWith(developed(pixels, this.viewer.looks.contrast));
    render(this);
  }

  /** @param {import("../viewer/viewer.js").Looks} looks */
  keepLooks(looks) {
    this.session.looks = looks;
    this.session.rememberSoon();
    drawAsk(this);
  }

  get shownConcept() {
    return this.peeked ?? this.chosen;
  }
}
