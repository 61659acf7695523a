// Requests that outlive a server that is away: they are sent again until somebody answers, and the page says so
// meanwhile. What the server refuses is not sent again.

import { ApiError } from "../api.js";

const [FIRST, LONGEST] = [700, 6000]; // milliseconds between tries

/** @param {typeof import("../notices.js")} notices @param {() => void} changed the server went away, or is back */
export function createLink(notices, changed) {
  /** @type {Set<() => void>} */
  const sleepers = new Set();
  const wake = () => [...sleepers].forEach((rouse) => rouse());

  /** @param {number} milliseconds @returns {Promise<void>} */
  const pause = (milliseconds) =>
    new Promise((resolve) => {
      const rouse = () => {
        clearTimeout(timer);
        sleepers.delete(rouse);
        resolve();
      };
      const timer = setTimeout(rouse, milliseconds);
      sleepers.add(rouse);
    });

  window.addEventListener("online", wake);
  return {
    /**
     * @template T
     * @param {() => Promise<T>} run
     * @param {() => boolean} wanted whether its answer still is
     * @returns {Promise<T>}
     */
    async persist(run, wanted = () => true) {
      for (let wait = FIRST; ; wait = Math.min(2 * wait, LONGEST)) {
        try {
          const answer = await run();
          notices.showOffline(null);
          return answer;
        } catch (error) {
          if (!(error instanceof ApiError && error.passing) || !wanted()) {
            if (error instanceof ApiError && !error.passing) notices.showOffline(null);
            throw error;
          }
        }
        notices.showOffline(wake);
        changed();
        await pause(wait);
        if (!wanted()) throw new DOMException("nobody waits for it any more", "AbortError");
      }
    },
    close() {
      window.removeEventListener("online", wake);
      notices.showOffline(null);
      wake();
    },
  };
}

/** A name for one act, under which the server counts it once. */
export const newKey = () =>
  [...crypto.getRandomValues(new Uint8Array(16))].map((each) => each.toString(16).padStart(2, "0")).join("");

/** @param {unknown} error whether it only says that something newer took its place */
export const overtaken = (error) => error instanceof DOMException && error.name === "AbortError";
