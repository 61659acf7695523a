// Window, level and inversion of an image of 8 bits a channel. A contrast is {width, level, invert}: grey values from
// level − width/2 to level + width/2 spread from black to white.

/** @typedef {{ width: number, level: number, invert: boolean }} Contrast */

/** @type {Contrast} */
export const PLAIN = { width: 255, level: 127.5, invert: false };

/** @param {Contrast} contrast @returns {Contrast} within what 8 bits can show */
export const bounded = ({ width, level, invert }) => ({
  width: Math.min(Math.max(width, 2), 510),
  level: Math.min(Math.max(level, 0), 255),
  invert,
});

/**
 * What each of 256 values becomes.
 * @param {Contrast} contrast
 */
export function curve({ width, level, invert }) {
  const table = new Uint8ClampedArray(256);
  for (let value = 0; value < 256; value += 1) {
    const share = Math.min(Math.max((value - level) / width + 0.5, 0), 1);
    table[value] = Math.round(255 * (invert ? 1 - share : share));
  }
  return table;
}

/**
 * The pixels as they are seen.
 * @param {ImageData} pixels @param {Contrast} contrast
 */
export function developed(pixels, contrast) {
  const table = curve(contrast);
  const seen = new ImageData(pixels.width, pixels.height);
  for (let index = 0; index < pixels.data.length; index += 4) {
    seen.data[index] = table[pixels.data[index]];
    seen.data[index + 1] = table[pixels.data[index + 1]];
    seen.data[index + 2] = table[pixels.data[index + 2]];
    seen.data[index + 3] = pixels.data[index + 3];
  }
  return seen;
}

/**
 * A PNG's pixels.
 * @param {Blob} blob
 */
export async function decoded(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = canvasOf(bitmap.width, bitmap.height);
  const context = contextOf(canvas);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** @param {number} width @param {number} height */
export function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.max(1, Math.round(width)), Math.max(1, Math.round(height))];
  return canvas;
}

/** @param {HTMLCanvasElement} canvas */
export function contextOf(canvas) {
  const context = canvas.getContext("2d");
  if (!context) throw new Error("this browser gives no canvas");
  return context;
}

/** @param {ImageData} pixels */
export function canvasWith(pixels) {
  const canvas = canvasOf(pixels.width, pixels.height);
  contextOf(canvas).putImageData(pixels, 0, 0);
  return canvas;
}
