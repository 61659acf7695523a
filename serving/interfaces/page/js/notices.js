// What must be said above everything else: what went wrong, that the server is away, and that an image does not fit.

import { ApiError } from "./api.js";
import { button, byId, element } from "./dom.js";
import { strings } from "./strings.js";

/** @typedef {{ code: string, message: string }} Reason */

/** @param {string} message one sentence; empty: nothing went wrong any more */
export function showError(message) {
  byId("error-text").textContent = message;
  byId("error").hidden = !message;
}

/**
 * Says what an error means for the person; anything that is no ApiError is a fault of this page.
 * @param {unknown} error
 */
export function explainError(error) {
  if (error instanceof ApiError) return showError(error.message);
  reportError(error);
  return showError(strings.errors.page);
}

const SAID_MS = 8000; // long enough to be read
let fading = 0;

/**
 * Says quietly what was done. Read out by screen readers.
 * @param {string} message
 */
export function say(message) {
  clearTimeout(fading);
  byId("status").textContent = message;
  fading = window.setTimeout(() => (byId("status").textContent = ""), SAID_MS);
}

/**
 * The server is away (what was done is kept), or, with null, it is back.
 * @param {(() => void) | null} retry
 */
export function showOffline(retry) {
  const node = byId("offline");
  if (node.hidden === (retry === null)) return;
  node.hidden = retry === null;
  node.replaceChildren(
    ...(retry ? [element("p", {}, strings.errors.offline), button(strings.errors.retry, retry)] : []),
  );
}

/**
 * What the input guard says of an image; null: no image is shown.
 * @param {{ reasons: Reason[], action: string } | null} fits
 */
export function showMisfit(fits) {
  const reasons = fits?.reasons ?? [];
  byId("misfit-title").textContent = reasons.length ? strings.misfit(fits?.action === "abstain") : "";
  byId("misfit-reasons").replaceChildren(
    ...reasons.map(({ code, message }) => element("li", { "data-reason": code }, message)),
  );
  byId("misfit").hidden = reasons.length === 0;
}

export function startNotices() {
  byId("error-close").addEventListener("click", () => showError(""));
}
