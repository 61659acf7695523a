// What the worklist is told by the server. Types only: nothing here runs.

/**
 * @typedef {"unread" | "read" | "signed" | "skipped"} Mine
 * @typedef {"none" | "one" | "same" | "differ"} Agreement
 * @typedef {{ digest: string, top: string, found: string[], confidence: number | null, margin: number,
 *   expected_effect: number, asks_for_help: boolean, abstains: boolean, fits: boolean, added_at: string,
 *   mine: Mine, readers: number, agreement: Agreement }} WorklistItem
 * @typedef {{ items: WorklistItem[], total: number, next_offset: number | null }} WorklistAnswer
 * @typedef {{ study_uid: string, series_uid: string, instance_uid: string, modality: string, study_date: string }}
 *   FoundInstance
 * @typedef {{ order: "margin" | "effect" | "newest", progress: "all" | Mine, help: boolean }} Filter
 */

export {};
