// Which study comes next: the first that this reader has neither signed nor skipped, as the worklist is sorted.

import { keptFilter } from "./filter.js";

/**
 * @param {import("../types.js").App} app
 * @param {string} [current] the study that is open now, which is not next
 * @returns {Promise<string | null>} its digest; null if all are done
 */
export async function nextStudy(app, current = "") {
  const { order, help } = keptFilter();
  for (const progress of ["unread", "read"]) {
    const { items } = await app.api.worklist({ order, help: help || undefined, progress, limit: 2 });
    const next = items.find((/** @type {import("./types.js").WorklistItem} */ { digest }) => digest !== current);
    if (next) return next.digest;
  }
  return null;
}
