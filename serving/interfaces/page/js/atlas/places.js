// Where in the image a prototype fires: counts by cell of the map, drawn as they are, one square a cell.

import { element } from "../dom.js";
import { strings } from "../strings.js";

const DARK = [16, 22, 29];
const FULL = [255, 233, 69]; // the bright end of a map that colour-blind readers can read, as the heat maps have it

/**
 * @param {number[][]} counts h×w, upper left first
 * @returns {HTMLElement}
 */
export function places(counts) {
  const [height, width] = [counts.length, counts[0]?.length ?? 0];
  const all = counts.flat();
  const [total, most] = [all.reduce((sum, count) => sum + count, 0), Math.max(...all, 1)];
  const text = strings.atlas.places;
  if (!total) return element("p", { class: "quiet" }, text.none);
  const canvas = /** @type {HTMLCanvasElement} */ (
    element("canvas", {
      width,
      height,
      class: "places",
      role: "img",
      "aria-label": text.label(total, where(counts, total)),
    })
  );
  const context = canvas.getContext("2d");
  const image = new ImageData(width, height);
  all.forEach((count, cell) => {
    const weight = Math.sqrt(count / most); // a single study must still be seen
    DARK.forEach((dark, channel) => (image.data[4 * cell + channel] = dark + weight * (FULL[channel] - dark)));
    image.data[4 * cell + 3] = 255;
  });
  context?.putImageData(image, 0, 0);
  return element("figure", {}, canvas, element("figcaption", { class: "quiet" }, text.caption(total, most)));
}

/**
 * The part of the image where most of it is, in words.
 * @param {number[][]} counts
 * @param {number} total
 */
function where(counts, total) {
  let [across, down] = [0, 0];
  counts.forEach((row, y) =>
    row.forEach((count, x) => ([across, down] = [across + count * (x + 0.5), down + count * (y + 0.5)])),
  );
  const third = (/** @type {number} */ value, /** @type {number} */ size) =>
    Math.min(Math.floor((3 * value) / (total * size)), 2);
  return strings.atlas.places.parts[third(down, counts.length)][third(across, counts[0].length)];
}
