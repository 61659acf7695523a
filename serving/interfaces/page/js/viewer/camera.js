// Where the image lies on the screen. A camera is {zoom, x, y}: zoom 1 shows the whole image, (x, y) is the point of
// the image in the middle of the screen, each from 0 to 1. Plain values: whatever changes one returns another.

/** @typedef {{ zoom: number, x: number, y: number }} Camera */
/** @typedef {import("../types.js").Size} Size */

/** @type {Camera} */
export const WHOLE = { zoom: 1, x: 0.5, y: 0.5 };
const MOST = 32;

/** @param {number} value @param {number} low @param {number} high */
export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/**
 * Screen pixels for one pixel of the image.
 * @param {Camera} camera @param {Size} image @param {Size} screen
 */
export const scaleOf = (camera, image, screen) =>
  camera.zoom * Math.min(screen.width / image.width, screen.height / image.height);

/**
 * Which part of the image plane the screen shows, in pixels of the image.
 * @param {Camera} camera @param {Size} image @param {Size} screen
 */
export function windowOf(camera, image, screen) {
  const scale = scaleOf(camera, image, screen);
  const [width, height] = [screen.width / scale, screen.height / scale];
  return { left: camera.x * image.width - width / 2, top: camera.y * image.height - height / 2, width, height, scale };
}

/**
 * A point of the screen as one of the image.
 * @param {Camera} camera @param {Size} image @param {Size} screen @param {{ x: number, y: number }} point
 */
export function onImage(camera, image, screen, point) {
  const { left, top, scale } = windowOf(camera, image, screen);
  return { x: left + point.x / scale, y: top + point.y / scale };
}

/**
 * Nearer or farther by a factor, so that what is under a point of the screen stays there.
 * @param {Camera} camera @param {Size} image @param {Size} screen @param {number} factor
 * @param {{ x: number, y: number }} [point] the middle if it is not given
 * @returns {Camera}
 */
export function zoomed(camera, image, screen, factor, point = { x: screen.width / 2, y: screen.height / 2 }) {
  const zoom = clamp(camera.zoom * factor, 1, MOST);
  if (zoom === 1) return WHOLE;
  const fixed = onImage(camera, image, screen, point);
  const scale = scaleOf({ ...camera, zoom }, image, screen);
  const x = (fixed.x - (point.x - screen.width / 2) / scale) / image.width;
  const y = (fixed.y - (point.y - screen.height / 2) / scale) / image.height;
  return { zoom, x: clamp(x, 0, 1), y: clamp(y, 0, 1) };
}

/**
 * Pushed by pixels of the screen.
 * @param {Camera} camera @param {Size} image @param {Size} screen @param {number} dx @param {number} dy
 * @returns {Camera}
 */
export function panned(camera, image, screen, dx, dy) {
  const scale = scaleOf(camera, image, screen);
  const x = clamp(camera.x - dx / scale / image.width, 0, 1);
  return { ...camera, x, y: clamp(camera.y - dy / scale / image.height, 0, 1) };
}
