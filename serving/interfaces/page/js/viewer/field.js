// A similarity map as a field of numbers: its own cells, the same enlarged, and the lines where it passes a level.

/** @typedef {{ values: Float32Array, width: number, height: number }} Field row by row */

const KEYS = -0.75; // of the bicubic kernel, so that what is brightest here is where the server marks the maximum

/** @param {number[][]} rows @returns {Field} */
export const fieldOf = (rows) => ({
  values: Float32Array.from(rows.flat()),
  width: rows[0].length,
  height: rows.length,
});

/** @param {Field} field */
export const largest = ({ values }) => values.reduce((one, other) => Math.max(one, other), -Infinity);

/**
 * For each of `size` places on a line the four cells around it, clipped to the line, and their weights.
 * @param {number} cells @param {number} size
 */
function taps(cells, size) {
  return Array.from({ length: size }, (_, place) => {
    const centre = ((place + 0.5) * cells) / size - 0.5;
    const first = Math.floor(centre);
    return [-1, 0, 1, 2].map((step) => {
      const distance = Math.abs(centre - (first + step));
      const near = ((KEYS + 2) * distance - (KEYS + 3)) * distance ** 2 + 1;
      const far = KEYS * (((distance - 5) * distance + 8) * distance - 4);
      return { cell: Math.min(Math.max(first + step, 0), cells - 1), weight: distance <= 1 ? near : far };
    });
  });
}

/**
 * Enlarged smoothly by a whole factor.
 * @param {Field} field @param {number} factor
 * @returns {Field}
 */
export function enlarged({ values, width, height }, factor) {
  const [across, down] = [taps(width, width * factor), taps(height, height * factor)];
  const wide = new Float32Array(height * across.length);
  for (let y = 0; y < height; y += 1) {
    across.forEach((near, x) => {
      wide[y * across.length + x] = near.reduce((sum, { cell, weight }) => sum + weight * values[y * width + cell], 0);
    });
  }
  const all = new Float32Array(down.length * across.length);
  down.forEach((near, y) => {
    for (let x = 0; x < across.length; x += 1) {
      all[y * across.length + x] = near.reduce(
        (sum, { cell, weight }) => sum + weight * wide[cell * across.length + x],
        0,
      );
    }
  });
  return { values: all, width: across.length, height: down.length };
}

/**
 * Adds the lines along which a field passes a level to a path, in units of its cells (marching squares).
 * @param {Field} field @param {number} level @param {Path2D} path
 */
export function trace({ values, width, height }, level, path) {
  const at = (/** @type {number} */ x, /** @type {number} */ y) => values[y * width + x] - level;
  for (let y = 0; y < height - 1; y += 1) {
    for (let x = 0; x < width - 1; x += 1) {
      const [a, b, c, d] = [at(x, y), at(x + 1, y), at(x + 1, y + 1), at(x, y + 1)];
      /** @type {number[][]} */
      const cuts = [];
      if (a > 0 !== b > 0) cuts.push([x + a / (a - b), y]);
      if (b > 0 !== c > 0) cuts.push([x + 1, y + b / (b - c)]);
      if (c > 0 !== d > 0) cuts.push([x + 1 - c / (c - d), y + 1]);
      if (d > 0 !== a > 0) cuts.push([x, y + 1 - d / (d - a)]);
      for (let cut = 0; cut + 1 < cuts.length; cut += 2) {
        path.moveTo(cuts[cut][0] + 0.5, cuts[cut][1] + 0.5);
        path.lineTo(cuts[cut + 1][0] + 0.5, cuts[cut + 1][1] + 0.5);
      }
    }
  }
}

/**
 * Adds the edges of the cells that are above a level to a path.
 * @param {Field} field @param {number} level @param {Path2D} path
 */
export function outline({ values, width, height }, level, path) {
  const above = (/** @type {number} */ x, /** @type {number} */ y) =>
    x >= 0 && y >= 0 && x < width && y < height && values[y * width + x] > level;
  for (let y = 0; y <= height; y += 1) {
    for (let x = 0; x <= width; x += 1) {
      if (above(x, y) !== above(x - 1, y)) (path.moveTo(x, y), path.lineTo(x, y + 1));
      if (above(x, y) !== above(x, y - 1)) (path.moveTo(x, y), path.lineTo(x + 1, y));
    }
  }
}
