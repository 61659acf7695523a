// What the parts of the page hand to one another. Types only: nothing here runs.

/** What a reader says of a study, as the server reads it; `alpha` null: the model's own.
 * @typedef {{ x_min: number, y_min: number, x_max: number, y_max: number }} Region
 * @typedef {Region & { kind: string, concept?: string | null }} Box
 * @typedef {{ boxes: Box[], confirmed: string[], rejected: string[], alpha: number | null }} State
 * @typedef {{ width: number, height: number, turn?: number }} Size
 */

/** What the server says of a study.
 * @typedef {{ x: number, y: number, similarity: number }} Peak
 * @typedef {{ index: number, rank: number, score: number, study_id: string, usage: number, reliance: number, crop: string }} Exemplar
 * @typedef {{ name: string, probability: number, answer: string, contributions: Record<string, number>, peak: Peak | null, exemplars: Exemplar[] }} Concept
 * @typedef {{ name: string, probability: number, logit: number, bias: number, threshold: number | null }} ClassScore
 * @typedef {{ concept: string, effect: number, place: Peak | null, reason: string }} Question
 * @typedef {{ score: number, limit: number, reasons: Array<{ code: string, message: string }>, action: string }} Fits
 * @typedef {{ task: string, found: string[], top: string, margin: number, asks_for_help: boolean, abstains: boolean, classes: ClassScore[], concepts: Concept[], map_limit: number, questions: Question[], fits: Fits }} Prediction
 * @typedef {{ digest: string, image: Size, model: { version: string, digest: string }, prediction: Prediction, timings_ms: Record<string, number> }} StudyAnswer
 * @typedef {{ box: number, concept: string, probability: number, speaks_for: Array<{ name: string, probability: number }>, message: string }} Doubt
 */

/** A study that this browser has opened: its answer, and its file while the page is open, in case the server forgets it.
 * @typedef {{ answer: StudyAnswer, file: Blob | null, name: string, sample: any, origin: { node: string, original: object } | null }} Opened
 */

/** What every view is given.
 * @typedef {object} App
 * @property {typeof import("./api.js")} api
 * @property {import("./store.js").Store} store
 * @property {typeof import("./notices.js")} notices
 * @property {(hash: string) => void} navigate to `#/worklist`, `#/read/DIGEST`, …
 * @property {{ actor: string, role: string }} me
 * @property {any[]} models what is in service, the champion first
 * @property {(answer: StudyAnswer, about?: { file?: Blob | null, name?: string, sample?: any, origin?: { node: string, original: object } }) => string} remember
 *   an opened study; gives the hash of its reading
 * @property {(digest: string) => Opened | undefined} opened
 */

/** A view: puts itself into `root`; what it returns takes it away again.
 * @typedef {(root: HTMLElement, parameters: { path: string[], query: URLSearchParams }, app: App) => (() => void)} Mount
 */

export {};
