// Numbers, names and times as people read them.

/** @param {number} value */
export const percent = (value) => `${Math.round(value * 100)} %`;

/**
 * With its sign, and a true minus.
 * @param {number} value
 * @param {number} digits
 */
export const signed = (value, digits = Math.abs(value) < 10 ? 2 : 1) =>
  `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

/**
 * A name of the model's as text.
 * @param {string} name
 */
export const plain = (name) => name.replaceAll("_", " ");

/** @param {string} text */
export const nonbreaking = (text) => text.replaceAll(" %", "\u00a0%");

/**
 * Day and time in the reader's own zone.
 * @param {string} iso
 */
export const when = (iso) =>
  new Date(iso).toLocaleString("en-GB", {
    day: "numeric",
    month: "short",
    year: "numeric",
    hour: "2-digit",
    minute: "2-digit",
  });

/** @param {Record<string, number>} steps */
export const timings = (steps) =>
  Object.entries(steps)
    .map(([step, ms]) => `${step} ${ms.toFixed(1)} ms`)
    .join(" · ");

/**
 * The first characters of a digest, enough to tell studies apart.
 * @param {string} digest
 */
export const brief = (digest) => digest.slice(0, 8);
