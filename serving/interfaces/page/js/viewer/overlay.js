// A similarity map over the image: heat or contours, at its own cells or smooth, laid where the server says it lies.

import { canvasWith } from "./contrast.js";
import { colour, painted } from "./colours.js";
import { enlarged, outline, trace } from "./field.js";

/** @typedef {{ side: number, scale: number, left: number, top: number, turn: number }} Frame */
/** @typedef {{ field: import("./field.js").Field, frame: Frame, absent: number, limit: number }} Layer */
/** @typedef {{ map: string, cells: boolean, palette: string, opacity: number }} Look `map`: heat, contour or none */

const FINENESS = 192; // places along a smooth map's longer side, at least
// turn (EXIF's Orientation): transposed, then mirrored left and right, then up and down
/** @type {Record<number, [boolean, boolean, boolean]>} */
const TURNS = {
  1: [false, false, false],
  2: [false, true, false],
  3: [false, true, true],
  4: [false, false, true],
  5: [true, false, false],
  6: [true, true, false],
  7: [true, true, true],
  8: [true, false, true],
};

/**
 * The affine matrix from the square that a map covers to pixels of the stored image.
 * @param {Frame} frame @param {import("../types.js").Size} image
 */
export function placed({ scale, left, top, turn }, image) {
  const [transposed, across, down] = TURNS[turn];
  const [width, height] = transposed ? [image.height, image.width] : [image.width, image.height];
  const turned = new DOMMatrix([1 / scale, 0, 0, 1 / scale, -left / scale, -top / scale]);
  const back = new DOMMatrix([across ? -1 : 1, 0, 0, down ? -1 : 1, across ? width : 0, down ? height : 0]);
  const untransposed = transposed ? new DOMMatrix([0, 1, 1, 0, 0, 0]) : new DOMMatrix();
  return untransposed.multiply(back).multiply(turned);
}

/** Draws layers, and keeps what it made of the last one. */
export class Overlay {
  constructor() {
    /** @type {{ layer: Layer | null, key: string, picture: HTMLCanvasElement | null, paths: Array<{ path: Path2D, level: number }> }} */
    this.made = { layer: null, key: "", picture: null, paths: [] };
  }

  /**
   * @param {CanvasRenderingContext2D} context in pixels of the stored image
   * @param {Layer} layer
   * @param {Look} look
   * @param {import("../types.js").Size} image
   * @param {number} unit pixels of the image for one of the screen
   */
  draw(context, layer, look, image, unit) {
    if (look.map === "none") return;
    const { side } = layer.frame;
    this.#make(layer, look);
    context.save();
    context.beginPath();
    context.rect(0, 0, image.width, image.height);
    context.clip();
    context.globalAlpha = look.opacity;
    const { a, b, c, d, e, f } = placed(layer.frame, image);
    context.transform(a, b, c, d, e, f);
    if (this.made.picture) {
      context.imageSmoothingEnabled = !look.cells;
      context.drawImage(this.made.picture, 0, 0, side, side);
    }
    const pen = unit * layer.frame.scale;
    for (const { path, level } of this.made.paths) {
      context.lineWidth = 4 * pen;
      context.strokeStyle = "#000000a0";
      context.stroke(path);
      context.lineWidth = 2 * pen;
      context.strokeStyle = `rgb(${colour(look.palette, level / Math.max(layer.limit, 1e-6)).join(" ")})`;
      context.stroke(path);
    }
    if (look.cells) this.#grid(context, layer, pen);
    context.restore();
  }

  /** @param {Layer} layer @param {Look} look */
  #make(layer, look) {
    const key = `${look.map} ${look.cells} ${look.palette}`;
    if (this.made.layer === layer && this.made.key === key) return;
    const { field, absent, limit, frame } = layer;
    const factor = Math.max(1, Math.ceil(FINENESS / Math.max(field.width, field.height)));
    const shown = look.cells ? field : enlarged(field, factor);
    this.made = { layer, key, picture: null, paths: [] };
    if (look.map === "heat") {
      this.made.picture = canvasWith(painted(shown, { absent, limit, palette: look.palette }));
      return;
    }
    for (const level of [0, 1 / 3, 2 / 3].map((share) => absent + share * (limit - absent))) {
      if (level >= limit) continue;
      const path = new Path2D();
      (look.cells ? outline : trace)(shown, level, path);
      const scaled = new Path2D();
      scaled.addPath(path, new DOMMatrix().scale(frame.side / shown.width, frame.side / shown.height));
      this.made.paths.push({ path: scaled, level });
    }
  }

  /** @param {CanvasRenderingContext2D} context @param {Layer} layer @param {number} pen */
  #grid(context, { field, frame }, pen) {
    context.globalAlpha = 0.25;
    context.lineWidth = pen;
    context.strokeStyle = "#ffffff";
    context.beginPath();
    for (let x = 0; x <= field.width; x += 1) {
      context.moveTo((x * frame.side) / field.width, 0);
      context.lineTo((x * frame.side) / field.width, frame.side);
    }
    for (let y = 0; y <= field.height; y += 1) {
      context.moveTo(0, (y * frame.side) / field.height);
      context.lineTo(frame.side, (y * frame.side) / field.height);
    }
    context.stroke();
  }
}
