// What a reviewer has said and not signed yet: verdicts by prototype, of one bundle. Kept in the browser, so that
// neither a reload nor a look at another view loses it.

import { newKey } from "../api.js";

/** @typedef {import("./types.js").Prototype} Prototype */
/** @typedef {import("./types.js").Word} Word */

/** @param {Prototype} prototype */
export const keyOf = ({ concept, index }) => `${concept}/${index}`;

/** @param {string} key @returns {Prototype} */
export function prototypeOf(key) {
  const cut = key.lastIndexOf("/"); // concepts may have a slash in their names
  return { concept: key.slice(0, cut), index: Number(key.slice(cut + 1)) };
}

export class Draft {
  /** @param {string} bundle its digest @param {() => void} onChange */
  constructor(bundle, onChange) {
    this.place = `csr:atlas:${bundle}`;
    this.onChange = onChange;
    this.key = newKey(); // the same as long as the same is signed, however often it is tried
    /** @type {Record<string, Word>} */
    this.words = JSON.parse(localStorage.getItem(this.place) ?? "{}");
  }

  /** @param {string} key */
  of(key) {
    return this.words[key];
  }

  get keys() {
    return Object.keys(this.words);
  }

  /**
   * @param {string[]} keys
   * @param {Word | null} word the same for all; null: nothing any more
   * @param {boolean} quietly nobody is told: somebody is typing where it would be drawn anew
   */
  say(keys, word, quietly = false) {
    this.key = newKey();
    const left = Object.entries(this.words).filter(([key]) => !keys.includes(key));
    this.words = Object.fromEntries(word ? [...left, ...keys.map((key) => [key, word])] : left);
    if (left.length || word) localStorage.setItem(this.place, JSON.stringify(this.words));
    else localStorage.removeItem(this.place);
    if (!quietly) this.onChange();
  }

  /** As the server reads them. */
  get reviews() {
    return Object.entries(this.words).map(([key, word]) => ({ ...prototypeOf(key), ...word }));
  }
}
