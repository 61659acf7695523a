// What the atlas view is told by the server, and what it keeps of its own. Types only: nothing here runs.

/** From the server.
 * @typedef {{ study_id: string, box: [number, number, number, number], similarity: number }} Source
 * @typedef {{ concept: string, index: number }} Prototype
 * @typedef {Prototype & { sources: Source[], usage: number, reliance: number, weights: Record<string, number>,
 *   alive: boolean }} Entry
 * @typedef {{ study_id: string, class: string, contribution: number, share: number, right: boolean | null }} Decided
 * @typedef {Entry & { places: number[][] | null, similar: Array<Prototype & { cosine: number }>, decides: Decided[],
 *   maps: boolean }} Detail
 * @typedef {"artefact" | "other_finding" | "duplicate" | "not_typical" | "other" | "none"} Reason
 * @typedef {"agreed" | "proposed" | "disputed"} Status
 * @typedef {{ reviewer: string, verdict: "keep" | "prune", reason: Reason, comment: string, at: string }} Said
 * @typedef {Prototype & Said & { status: Status, said: Said[] }} Review
 * @typedef {{ macro_f1: number, pointing: number | null }} Scores
 * @typedef {{ studies: number, before: Scores, after: Scores, changed: number,
 *   classes: Array<{ name: string, f1_before: number, f1_after: number }>,
 *   concepts: Array<{ name: string, pointing_before: number | null, pointing_after: number | null }> }} Preview
 */

/** A verdict that is not signed yet.
 * @typedef {{ verdict: "keep" | "prune", reason: Reason, comment: string }} Word
 */

export {};
