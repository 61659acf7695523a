// The image with its map on one canvas and its boxes in one SVG. It holds how the image is looked at (`looks`) and
// nothing of the reading: it draws what it is given and reports what the reader did, in pixels of the stored image.

import { setAttributes, shape } from "../dom.js";
import { WHOLE, clamp, onImage, panned, windowOf, zoomed } from "./camera.js";
import { PLAIN, bounded, canvasWith, contextOf, developed } from "./contrast.js";
import { Gestures } from "./gestures.js";
import { drawMarks, pulled, rectOf, smallestAt } from "./marks.js";
import { Overlay } from "./overlay.js";

/** @typedef {import("../types.js").Region} Region */
/** @typedef {import("../types.js").Size} Size */
/** @typedef {{ camera: import("./camera.js").Camera, contrast: import("./contrast.js").Contrast, map: string, cells: boolean, palette: string, opacity: number, boxes: boolean }} Looks */
/**
 * @typedef {object} Reports
 * @property {() => string} tool
 * @property {(box: Region) => void} onBox a box was drawn
 * @property {(index: number, box: any) => void} onChange a box was moved or resized
 * @property {(index: number | null) => void} onSelect
 * @property {(looks: Looks) => void} onLooks
 */

/** @type {Looks} */
export const LOOKS = {
  camera: WHOLE,
  contrast: PLAIN,
  map: "heat",
  cells: false,
  palette: "plasma",
  opacity: 0.6,
  boxes: true,
};
const MIN_DRAG = 0.015; // of the image's longer side: less is a click, not a box
const coarse = window.matchMedia("(pointer: coarse)");

export class Viewer {
  /** @param {HTMLElement} root holds a canvas and an svg @param {Reports} reports */
  constructor(root, reports) {
    this.root = root;
    this.reports = reports;
    this.canvas = /** @type {HTMLCanvasElement} */ (root.querySelector("canvas"));
    this.svg = /** @type {SVGElement} */ (root.querySelector("svg"));
    this.marked = shape("g");
    this.draft = shape("rect", { class: "draft" });
    this.frame = shape("rect", { class: "frame", id: "image-frame" });
    this.svg.replaceChildren(this.frame, this.marked, this.draft);
    /** @type {Size | null} */
    this.size = null;
    /** @type {ImageData | null} */
    this.pixels = null;
    /** @type {HTMLCanvasElement | null} */
    this.picture = null;
    /** @type {import("./overlay.js").Layer | null} */
    this.layer = null;
    this.overlay = new Overlay();
    this.looks = LOOKS;
    /** @type {import("./marks.js").Marks} */
    this.marks = { boxes: [], peak: null, look: null, selected: null };
    this.queued = false;
    this.gestures = new Gestures(this.svg, {
      tool: () => reports.tool(),
      onDraft: (start, end) => this.#sketch(start, end),
      onDraw: (start, end) => this.#drawn(start, end),
      onPull: (index, part, from, to, done) => this.#pull(index, part, from, to, done),
      onPan: (dx, dy) => this.#look({ camera: panned(this.looks.camera, this.#size(), this.screen(), dx, dy) }),
      onZoom: (factor, point) => this.zoom(factor, point),
      onContrast: (dx, dy) => this.#tune(dx, dy),
      onTap: (point) =>
        reports.onSelect(this.looks.boxes ? smallestAt(this.marks.boxes, this.#inside(point), 6 * this.unit()) : null),
      onCancel: () => this.#clear(),
    });
    this.watcher = new ResizeObserver(() => this.redraw());
    this.watcher.observe(root);
  }

  close() {
    this.watcher.disconnect();
  }

  /** @returns {Size} */
  screen() {
    return { width: Math.max(this.root.clientWidth, 1), height: Math.max(this.root.clientHeight, 1) };
  }

  #size() {
    return this.size ?? { width: 1, height: 1 };
  }

  /** Pixels of the image in one of the screen. */
  unit() {
    return 1 / windowOf(this.looks.camera, this.#size(), this.screen()).scale;
  }

  /** @param {Size} size @param {Looks} looks */
  show(size, looks) {
    [this.size, this.looks, this.pixels, this.picture, this.layer] = [size, looks, null, null, null];
    this.redraw();
  }

  /** @param {ImageData} pixels as the network saw them */
  setPixels(pixels) {
    this.pixels = pixels;
    this.picture = canvasWith(developed(pixels, this.looks.contrast));
    this.redraw();
  }

  /** @param {import("./overlay.js").Layer | null} layer */
  setLayer(layer) {
    this.layer = layer;
    this.redraw();
  }

  /** @param {Partial<Looks>} changes */
  #look(changes) {
    const before = this.looks;
    this.looks = { ...before, ...changes };
    if (this.pixels && before.contrast !== this.looks.contrast)
      this.picture = canvasWith(developed(this.pixels, this.looks.contrast));
    this.reports.onLooks(this.looks);
    this.redraw();
  }

  /** @param {Partial<Looks>} changes */
  setLooks(changes) {
    if (this.size) this.#look(changes);
  }

  /** @param {number} factor @param {{ x: number, y: number }} [point] */
  zoom(factor, point) {
    this.setLooks({ camera: zoomed(this.looks.camera, this.#size(), this.screen(), factor, point) });
  }

  /** @param {number} dx @param {number} dy */
  pan(dx, dy) {
    this.setLooks({ camera: panned(this.looks.camera, this.#size(), this.screen(), dx, dy) });
  }

  /** Contrast by a drag: to the right is a wider window, down is a lower level, so the image grows brighter. */
  #tune(/** @type {number} */ dx, /** @type {number} */ dy) {
    const { width, level, invert } = this.looks.contrast;
    this.setLooks({ contrast: bounded({ width: width + dx, level: level - dy / 2, invert }) });
  }

  /** @param {import("./marks.js").Marks} marks */
  mark(marks) {
    this.marks = marks;
    this.#drawMarks();
  }

  #drawMarks(/** @type {{ index: number, box: Region } | null} */ moved = null) {
    if (!this.size) return;
    const boxes = this.looks.boxes
      ? this.marks.boxes.map((box, index) => (moved?.index === index ? { ...box, ...moved.box } : box))
      : [];
    drawMarks(this.marked, { ...this.marks, boxes }, this.unit(), coarse.matches);
  }

  /** Draws all of it with the next frame. */
  redraw() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => {
      this.queued = false;
      this.#draw();
    });
  }

  #draw() {
    const { size } = this;
    if (!size) return;
    const screen = this.screen();
    const view = windowOf(this.looks.camera, size, screen);
    const dense = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(screen.width * dense), Math.round(screen.height * dense)];
    if (this.canvas.width !== width || this.canvas.height !== height)
      [this.canvas.width, this.canvas.height] = [width, height];
    this.svg.setAttribute("viewBox", `${view.left} ${view.top} ${view.width} ${view.height}`);
    setAttributes(this.frame, { x: 0, y: 0, width: size.width, height: size.height });
    const context = contextOf(this.canvas);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    const scale = view.scale * dense;
    context.setTransform(scale, 0, 0, scale, -view.left * scale, -view.top * scale);
    context.imageSmoothingQuality = "high";
    if (this.picture) context.drawImage(this.picture, 0, 0, size.width, size.height);
    if (this.layer) this.overlay.draw(context, this.layer, this.looks, size, 1 / view.scale);
    this.#drawMarks();
    this.canvas.dataset.drawn = `${this.picture ? "image" : ""}${this.layer ? " map" : ""}`;
  }

  /** @param {{ x: number, y: number }} point of the screen @returns {{ x: number, y: number }} inside the image */
  #inside(point) {
    const { x, y } = onImage(this.looks.camera, this.#size(), this.screen(), point);
    return { x: clamp(x, 0, this.#size().width), y: clamp(y, 0, this.#size().height) };
  }

  /** @param {{ x: number, y: number }} start @param {{ x: number, y: number }} end @returns {Region} */
  #span(start, end) {
    const [one, other] = [this.#inside(start), this.#inside(end)];
    return {
      x_min: Math.min(one.x, other.x),
      y_min: Math.min(one.y, other.y),
      x_max: Math.max(one.x, other.x),
      y_max: Math.max(one.y, other.y),
    };
  }

  #sketch(/** @type {any} */ start, /** @type {any} */ end) {
    setAttributes(this.draft, { ...rectOf(this.#span(start, end)), class: `draft ${this.reports.tool()}` });
  }

  #clear() {
    setAttributes(this.draft, { class: "draft", width: 0, height: 0 });
    this.#drawMarks();
  }

  #drawn(/** @type {any} */ start, /** @type {any} */ end) {
    const box = this.#span(start, end);
    this.#clear();
    const least = this.#least();
    if (this.size && box.x_max - box.x_min >= least && box.y_max - box.y_min >= least) this.reports.onBox(box);
  }

  #least() {
    return (MIN_DRAG * Math.max(this.#size().width, this.#size().height)) / Math.sqrt(this.looks.camera.zoom);
  }

  #pull(
    /** @type {number} */ index,
    /** @type {string} */ part,
    /** @type {any} */ from,
    /** @type {any} */ to,
    /** @type {boolean} */ done,
  ) {
    const before = this.marks.boxes[index];
    if (!before) return;
    const unit = this.unit();
    const { kind, x_min, y_min, x_max, y_max } = before;
    const box = pulled(
      { x_min, y_min, x_max, y_max },
      part,
      (to.x - from.x) * unit,
      (to.y - from.y) * unit,
      this.#size(),
      this.#least(),
    );
    this.#drawMarks({ index, box });
    if (done) this.reports.onChange(index, { kind, ...box });
  }
}
