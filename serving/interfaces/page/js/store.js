// One store for what more than one part of the page must know. A value is replaced, never changed in place.

/** @typedef {ReturnType<typeof createStore>} Store */

/** @param {Record<string, any>} initial */
export function createStore(initial) {
  let values = { ...initial };
  /** @type {Set<{ keys: string[], notice: (values: Record<string, any>) => void }>} */
  const listeners = new Set();

  return {
    /** @param {string} key @returns {any} */
    get: (key) => values[key],

    /**
     * Changes some values and tells those who listen to any of them.
     * @param {Record<string, any>} changes
     */
    set(changes) {
      const changed = Object.keys(changes).filter((key) => values[key] !== changes[key]);
      values = { ...values, ...changes };
      for (const { keys, notice } of [...listeners]) if (keys.some((key) => changed.includes(key))) notice(values);
    },

    /**
     * Calls `notice` after each change of one of `keys`, until the answer is called.
     * @param {string | string[]} keys
     * @param {(values: Record<string, any>) => void} notice
     * @returns {() => void}
     */
    subscribe(keys, notice) {
      const listener = { keys: [keys].flat(), notice };
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}
