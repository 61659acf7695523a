// What is being added to the worklist: a queue that outlives the view, so that a reader may go on while forty files are
// sent. Each job is sent on its own and refused on its own, with the server's sentence.

import { ApiError } from "../api.js";
import { strings } from "../strings.js";

/** @typedef {import("../types.js").StudyAnswer} StudyAnswer */
/** @typedef {{ name: string, send: () => Promise<StudyAnswer> }} Task */
/** @typedef {Task & { state: "waiting" | "sending" | "added" | "refused", message: string, digest: string }} Job */

const AT_ONCE = 2; // the server decodes three at a time, and other readers are there too

export class Queue {
  constructor() {
    /** @type {Job[]} */
    this.jobs = [];
    this.running = 0;
    /** @type {Set<() => void>} */
    this.listeners = new Set();
  }

  /**
   * Calls `listener` after each change, until the answer is called.
   * @param {() => void} listener
   * @returns {() => void}
   */
  subscribe(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Whether something is still to be sent. */
  get busy() {
    return this.jobs.some((job) => job.state === "waiting" || job.state === "sending");
  }

  /** @param {Task[]} tasks */
  add(tasks) {
    if (!this.busy) this.jobs = this.jobs.filter((job) => job.state === "refused"); // they stay until somebody read them
    this.jobs.push(...tasks.map((task) => /** @type {Job} */ ({ ...task, state: "waiting", message: "", digest: "" })));
    this.go();
  }

  /** Sends again what was refused: the server may have been away. */
  retry() {
    for (const job of this.jobs) if (job.state === "refused") job.state = "waiting";
    this.go();
  }

  /** Forgets what was not sent yet. */
  stop() {
    this.jobs = this.jobs.filter((job) => job.state !== "waiting");
    this.tell();
  }

  /** Forgets what is done. */
  clear() {
    this.jobs = this.jobs.filter((job) => job.state === "waiting" || job.state === "sending");
    this.tell();
  }

  tell() {
    for (const listener of this.listeners) listener();
  }

  go() {
    while (this.running < AT_ONCE) {
      const job = this.jobs.find((each) => each.state === "waiting");
      if (!job) break;
      job.state = "sending";
      this.running += 1;
      void this.send(job);
    }
    this.tell();
  }

  /** @param {Job} job */
  async send(job) {
    try {
      job.digest = (await job.send()).digest;
      job.state = "added";
    } catch (error) {
      job.message = explain(error);
      job.state = "refused";
    }
    this.running -= 1;
    this.go();
  }
}

/**
 * One sentence about a failure.
 * @param {unknown} error
 */
export function explain(error) {
  if (error instanceof ApiError) return error.message;
  reportError(error); // a fault of this page: the browser's console has it
  return strings.errors.page;
}
