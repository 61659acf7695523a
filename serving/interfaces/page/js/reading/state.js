// What the reader has said of a study: boxes, answers about concepts, and the weight α of what lies outside focus boxes
// (null: the model's own). Plain values: whatever changes one returns another. The last word on a concept counts, so no
// state contradicts itself but for a finding inside an ignored region, which the server refuses.

/** @typedef {import("../types.js").State} State */
/** @typedef {import("../types.js").Box} Box */

/** @type {State} */
export const EMPTY = { boxes: [], confirmed: [], rejected: [], alpha: null };

/** @param {string[]} names @param {string | null | undefined} name */
const without = (names, name) => names.filter((each) => each !== name);

/** @param {State} state @param {Box} box @returns {State} */
export const withBox = (state, box) => ({
  ...state,
  boxes: [...state.boxes, box],
  rejected: without(state.rejected, box.concept),
});
/** @param {State} state @param {number} index @returns {State} */
export const withoutBox = (state, index) => ({ ...state, boxes: state.boxes.filter((_, other) => other !== index) });
/** @param {State} state @param {number} index @param {Box} box @returns {State} */
export const withBoxAt = (state, index, box) => ({
  ...state,
  boxes: state.boxes.map((other, place) => (place === index ? box : other)),
  rejected: without(state.rejected, box.concept),
});

/**
 * Finding boxes stay only with a concept that is confirmed.
 * @param {State} state @param {string} name @param {string} answer confirmed, rejected or none
 * @returns {State}
 */
export function withAnswer(state, name, answer) {
  const boxes = answer === "confirmed" ? state.boxes : state.boxes.filter((box) => box.concept !== name);
  const next = { ...state, boxes, confirmed: without(state.confirmed, name), rejected: without(state.rejected, name) };
  if (answer === "confirmed") return { ...next, confirmed: [...next.confirmed, name] };
  return answer === "rejected" ? { ...next, rejected: [...next.rejected, name] } : next;
}

/** @param {State} state */
export const touched = ({ boxes, confirmed, rejected }) => boxes.length + confirmed.length + rejected.length > 0;

/** @param {State} state whether nothing at all was said */
export const untouched = (state) => !touched(state) && state.alpha === null;

/**
 * A box moved, or with Shift resized, by an arrow key: a fiftieth of the image. Null if the key is another or the box
 * would vanish.
 * @template {import("../types.js").Region} T
 * @param {T} box @param {KeyboardEvent} event @param {import("../types.js").Size} size
 * @returns {T | null}
 */
export function nudged(box, event, { width, height }) {
  /** @type {Record<string, number[]>} */
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (!steps[event.key]) return null;
  const next = { ...box };
  const [dx, dy] = [(steps[event.key][0] * width) / 50, (steps[event.key][1] * height) / 50];
  next.x_max = Math.min(next.x_max + dx, width);
  next.y_max = Math.min(next.y_max + dy, height);
  if (!event.shiftKey) {
    next.x_min = Math.max(next.x_min + dx, 0);
    next.y_min = Math.max(next.y_min + dy, 0);
  }
  return next.x_max - next.x_min < width / 50 || next.y_max - next.y_min < height / 50 ? null : next;
}

/**
 * Whether two states say the same, however they are written.
 * @param {State} one @param {State} other
 */
export function sameWord(one, other) {
  const box = (/** @type {Box} */ { kind, concept, x_min, y_min, x_max, y_max }) => [
    ...[kind, concept ?? null],
    ...[x_min, y_min, x_max, y_max].map((each) => each.toFixed(3)),
  ];
  const word = (/** @type {State} */ { boxes, confirmed, rejected, alpha }) =>
    JSON.stringify([boxes.map(box), [...confirmed].sort(), [...rejected].sort(), alpha]);
  return word(one) === word(other);
}
