// What the worklist is told by the server. Types only: nothing here runs.

/** `found`, `confidence` and `fits` are null where an earlier server assessed the study, until somebody opens it.
 * @typedef {"unread" | "read" | "signed" | "skipped"} Mine
 * @typedef {"none" | "one" | "same" | "differ" | "hidden"} Agreement
 * @typedef {{ digest: string, top: string, found: string[] | null, confidence: number | null, margin: number,
 *   expected_effect: number, asks_for_help: boolean, abstains: boolean, fits: boolean | null, added_at: string,
 *   mine: Mine, readers: number, agreement: Agreement }} WorklistItem
 * @typedef {{ items: WorklistItem[], total: number, total_exact: boolean, next_after: string | null }}
 *   WorklistAnswer
 * @typedef {{ study_uid: string, series_uid: string, instance_uid: string, modality: string, study_date: string }}
 *   FoundInstance
 * @typedef {{ order: "margin" | "effect" | "newest", progress: "all" | Mine, help: boolean }} Filter
 */

export {};
