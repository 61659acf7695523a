// What the models view is told by the server. Types only: nothing here runs.

/**
 * @typedef {{ format: number, preset: string, task: string, concepts: string[], classes: string[], channels: number,
 *   side: number, height: number, width: number, per_concept: number, alpha: number | Record<string, number>,
 *   rejection: string, ask_margin: number, least_effect: number, abstain_below: number | null, backbone: string,
 *   data: string, data_digest: string, code_revision: string, metrics: Record<string, any>,
 *   thresholds: number[] | null }} Manifest
 * @typedef {{ role: "champion" | "challenger", version: string, digest: string, since: string, manifest: Manifest,
 *   prototypes: number, live: number, mb: number }} Served
 * @typedef {{ at: string, role: "champion" | "challenger", version: string, digest: string, previous_digest: string,
 *   record: { number: number, hash: string } }} Change
 * @typedef {{ models: Served[], refused: Record<string, string>, history: Change[] }} ModelsAnswer
 * @typedef {import("../types.js").Prediction} Prediction
 * @typedef {{ model: { version: string, digest: string }, before: Prediction, after: Prediction }} Compared
 * @typedef {{ champion: Compared, challenger: Compared | null }} Comparison
 */

export {};
