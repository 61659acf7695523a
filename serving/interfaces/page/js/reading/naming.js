// What a box may be about: the server ranks the names, and the reader says which it is.

import { ApiError } from "../api.js";

/**
 * Fills in the names that a box without one may have.
 * @param {import("./session.js").Session} session @param {import("./session.js").Pending} pending
 */
export async function rank(session, pending) {
  const { x_min, y_min, x_max, y_max } = pending.box;
  const { app, request, before } = session;
  try {
    const box = { x_min, y_min, x_max, y_max };
    const answer = await session.ask((digest) => app.api.probe(digest, box, request.image));
    pending.ranked = answer.concepts.map((/** @type {any} */ { name, probability }) => ({ name, probability }));
  } catch (error) {
    if (!(error instanceof ApiError) || error.code !== "cannot_name") throw error;
    pending.ranked = before.concepts.map(({ name }) => ({ name, probability: null }));
    pending.all = true;
  }
  app.notices.showError("");
}
