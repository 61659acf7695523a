// What lies over the image in SVG: boxes with their handles, the maximum of the map, and where to look. The SVG's user
// units are pixels of the stored image, so a box needs no conversion.

import { shape } from "../dom.js";

/** @typedef {import("../types.js").Region} Region */
/** @typedef {Region & { kind: string, tag: string, pending?: boolean }} Mark */
/** @typedef {{ boxes: Mark[], peak: { x: number, y: number, faint: boolean } | null, look: { x: number, y: number } | null, selected: number | null }} Marks */

/** Handles by the edges that they move: n, s, w, e. */
const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];

/** @param {Region} box */
export const rectOf = ({ x_min: x, y_min: y, x_max, y_max }) => ({ x, y, width: x_max - x, height: y_max - y });

/** @param {Region} box @param {string} handle */
function cornerOf(box, handle) {
  const x = handle.includes("w") ? box.x_min : handle.includes("e") ? box.x_max : (box.x_min + box.x_max) / 2;
  const y = handle.includes("n") ? box.y_min : handle.includes("s") ? box.y_max : (box.y_min + box.y_max) / 2;
  return { x, y };
}

/**
 * @param {Mark} box @param {number} index @param {boolean} selected @param {number} unit pixels of the image for one of
 *   the screen @param {boolean} coarse whether a finger is likely
 */
function boxNodes(box, index, selected, unit, coarse) {
  const rect = rectOf(box);
  const kind = `${box.kind}${box.pending ? " pending" : ""}${selected ? " selected" : ""}`;
  const grip = { "data-index": index, "data-part": "move" };
  // Inside the box, or above one that is narrower than its words.
  const above = box.x_max - box.x_min < 9 * unit * box.tag.length && box.y_min > 20 * unit;
  const tag = shape("text", {
    class: `tag ${box.kind}`,
    x: box.x_min + (above ? 0 : 4 * unit),
    y: box.y_min + (above ? -8 : 15) * unit,
    "font-size": 14 * unit,
    ...grip,
  });
  tag.textContent = box.tag;
  const nodes = [
    shape("rect", { class: "halo", ...rect }),
    shape("rect", { class: kind, ...rect }),
    shape("rect", { class: "grip", ...rect, "stroke-width": coarse ? 26 : 10, ...grip }),
    tag,
  ];
  if (!selected) return nodes;
  const [drawn, hit] = [10 * unit, (coarse ? 30 : 16) * unit];
  const square = (/** @type {{ x: number, y: number }} */ { x, y }, /** @type {number} */ side) => ({
    x: x - side / 2,
    y: y - side / 2,
    width: side,
    height: side,
  });
  for (const handle of HANDLES) {
    const corner = cornerOf(box, handle);
    nodes.push(
      shape("rect", { class: `handle of-${box.kind}`, ...square(corner, drawn) }),
      shape("rect", { class: `hit ${handle}`, ...square(corner, hit), "data-index": index, "data-part": handle }),
    );
  }
  return nodes;
}

/**
 * Draws them anew.
 * @param {SVGElement} svg @param {Marks} marks @param {number} unit @param {boolean} coarse
 */
export function drawMarks(svg, { boxes, peak, look, selected }, unit, coarse) {
  const nodes = boxes.flatMap((box, index) => (index === selected ? [] : boxNodes(box, index, false, unit, coarse)));
  if (peak) {
    const circle = { cx: peak.x, cy: peak.y, r: 7 * unit };
    nodes.push(
      shape("circle", { class: "halo", ...circle }),
      shape("circle", { class: peak.faint ? "peak faint" : "peak", ...circle }),
    );
  }
  if (look) {
    const r = 13 * unit;
    nodes.push(shape("circle", { class: "look", cx: look.x, cy: look.y, r }));
    const mark = shape("text", { class: "tag look", x: look.x + r, y: look.y - r / 2, "font-size": 16 * unit });
    mark.textContent = "?";
    nodes.push(mark);
  }
  if (selected !== null && boxes[selected]) nodes.push(...boxNodes(boxes[selected], selected, true, unit, coarse));
  svg.replaceChildren(...nodes);
}

/**
 * A box after its part was pulled by (dx, dy): moved whole, or the edges of a handle; always inside the image.
 * @template {Region} T
 * @param {T} box @param {string} part @param {number} dx @param {number} dy
 * @param {import("../types.js").Size} image @param {number} least shortest side
 * @returns {T}
 */
export function pulled(box, part, dx, dy, image, least) {
  const within = (/** @type {number} */ value, /** @type {number} */ low, /** @type {number} */ high) =>
    Math.min(Math.max(value, low), Math.max(low, high));
  if (part === "move") {
    const x = within(dx, -box.x_min, image.width - box.x_max);
    const y = within(dy, -box.y_min, image.height - box.y_max);
    return { ...box, x_min: box.x_min + x, x_max: box.x_max + x, y_min: box.y_min + y, y_max: box.y_max + y };
  }
  const next = { ...box };
  if (part.includes("w")) next.x_min = within(box.x_min + dx, 0, box.x_max - least);
  if (part.includes("e")) next.x_max = Math.min(Math.max(box.x_max + dx, box.x_min + least), image.width);
  if (part.includes("n")) next.y_min = within(box.y_min + dy, 0, box.y_max - least);
  if (part.includes("s")) next.y_max = Math.min(Math.max(box.y_max + dy, box.y_min + least), image.height);
  return next;
}

/**
 * The smallest box at a point of the image; null: there is none.
 * @param {Region[]} boxes @param {{ x: number, y: number }} point @param {number} near pixels beside a box that are still its
 */
export function smallestAt(boxes, { x, y }, near) {
  /** @type {{ index: number | null, area: number }} */
  let found = { index: null, area: Infinity };
  boxes.forEach(({ x_min, y_min, x_max, y_max }, index) => {
    const area = (x_max - x_min) * (y_max - y_min);
    const here = x >= x_min - near && x <= x_max + near && y >= y_min - near && y <= y_max + near;
    if (here && area < found.area) found = { index, area };
  });
  return found.index;
}
