// What is unsaved, kept in this browser study by study until it is signed: what the reader said with its history, and how
// they look at the image. No pixels, no names of files or patients; a study is its digest.

const PREFIX = "csr:reading:";
const MOST = 200; // studies

/** @param {string} actor @param {string} digest */
const keyOf = (actor, digest) => `${PREFIX}${actor}:${digest}`;

/**
 * @param {string} actor @param {string} digest
 * @returns {any} null if nothing is kept
 */
export function recall(actor, digest) {
  try {
    return JSON.parse(localStorage.getItem(keyOf(actor, digest)) ?? "null");
  } catch {
    return null;
  }
}

/** The studies of which something is kept, the one that was left alone longest first. */
function kept() {
  const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  const at = (/** @type {string} */ key) => JSON.parse(localStorage.getItem(key) ?? "{}").at ?? 0;
  return keys.map((key) => ({ key, at: at(key) })).sort((one, other) => one.at - other.at);
}

/**
 * Keeps it; where the browser has no room left, what was left alone longest makes room.
 * @param {string} actor @param {string} digest @param {object} value
 * @returns {boolean} whether it could be kept
 */
export function keep(actor, digest, value) {
  const key = keyOf(actor, digest);
  const text = JSON.stringify({ ...value, at: Date.now() });
  const old = localStorage.getItem(key) === null ? kept().filter((each) => each.key !== key) : [];
  for (const { key: surplus } of old.slice(0, Math.max(old.length - MOST, 0))) localStorage.removeItem(surplus);
  try {
    localStorage.setItem(key, text);
    return true;
  } catch {
    const [oldest] = kept().filter((each) => each.key !== key);
    if (!oldest) return false;
    localStorage.removeItem(oldest.key);
    return keep(actor, digest, value);
  }
}
