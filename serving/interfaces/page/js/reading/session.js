// One reader's reading of one study. The state (`state.js`) goes whole with every request, so undo is a matter of this
// page alone, any server can answer, and the latest request wins. It holds no nodes: `changed` is called when there is
// something new to draw.

import { ApiError } from "../api.js";
import { newKey, overtaken } from "./link.js";
import { keep, recall } from "./memory.js";
import { rank } from "./naming.js";
import { EMPTY, untouched } from "./state.js";

/** @typedef {import("../types.js").State} State */
/** @typedef {{ state: State, past: State[], future: State[] }} History */
/** @typedef {{ box: import("../types.js").Box, ranked: Array<{ name: string, probability: number | null }> | null, all: boolean }} Pending */

/** @param {unknown} value */
export const keyOf = (value) => JSON.stringify(value);

export class Session {
  /**
   * @param {import("../types.js").Opened} opened
   * @param {import("../types.js").App} app
   * @param {ReturnType<typeof import("./link.js").createLink>} link
   * @param {(what: "state" | "answer" | "maps" | "busy") => void} changed
   */
  constructor(opened, app, link, changed) {
    this.opened = opened;
    this.app = app;
    this.link = link;
    this.changed = changed;
    this.digest = opened.answer.digest;
    this.size = opened.answer.image;
    this.before = opened.answer.prediction;
    this.after = this.before;
    /** @type {any} */
    this.changes = null;
    this.model = opened.answer.model;
    this.timings = opened.answer.timings_ms;
    /** @type {import("../types.js").Doubt[]} */
    this.doubts = [];
    this.alpha = app.models[0]?.manifest.alpha ?? null;
    /** @type {any} */
    this.maps = null;
    /** @type {Pending | null} */
    this.pending = null;
    const kept = recall(app.me.actor, this.digest) ?? {};
    /** @type {History} */
    this.history = { state: kept.state ?? EMPTY, past: kept.past ?? [], future: kept.future ?? [] };
    /** @type {Set<string>} doubted boxes whose name the reader insists on */
    this.insisted = new Set(kept.insisted ?? []);
    /** @type {Set<string>} concepts that the reader does not know about */
    this.unknown = new Set(kept.unknown ?? []);
    /** @type {any} */
    this.looks = kept.looks ?? null;
    this.comment = kept.comment ?? "";
    /** @type {import("../types.js").Box | null} a box without a name that was there when the page was left */
    this.unnamed = kept.unnamed ?? null;
    /** @type {{ said: string, key: string } | null} the last act that was sent, and its name */
    this.act = kept.act ?? null;
    /** @type {History} the last that was answered */
    this.answered = { state: EMPTY, past: [], future: [] };
    this.turn = 0; // an answer to an earlier turn is stale and is dropped
    this.sending = 0;
    this.closed = false;
    this.soon = 0; // the timer of what is kept in a moment
    /** @type {AbortController | null} */
    this.flight = null;
  }

  get state() {
    return this.history.state;
  }
  /** Whether the numbers on the screen are those of the state on the screen. */
  get current() {
    return this.answered.state === this.state;
  }

  get openDoubts() {
    return this.current ? this.doubts.filter((each) => !this.insisted.has(keyOf(this.state.boxes[each.box]))) : [];
  }

  get openQuestions() {
    return this.after.questions.filter((each) => !this.unknown.has(each.concept));
  }

  /** What is sent: the state, and the size that its boxes are in. */
  get request() {
    const { width, height, turn } = this.size;
    return { ...this.state, image: { width, height, turn } };
  }

  remember() {
    const { state, past, future } = this.history;
    const { looks, comment, act } = this;
    const [insisted, unknown, unnamed] = [[...this.insisted], [...this.unknown], this.pending?.box ?? null];
    const all = { state, past, future, insisted, unknown, unnamed, looks, comment, act };
    keep(this.app.me.actor, this.digest, all);
  }

  /** Asks for what a restored state changes, or only for the maps. */
  async start() {
    const { unnamed } = this;
    if (untouched(this.state)) {
      this.answered = this.history;
      await this.#loadMaps(++this.turn);
    } else await this.#become(this.history);
    if (unnamed && !this.pending) await this.propose(unnamed);
  }

  /** Keeps it in a moment: what changes with every move of a pointer is not kept at each. */
  rememberSoon() {
    clearTimeout(this.soon);
    this.soon = window.setTimeout(() => this.remember(), 300);
  }

  /** @param {State} next */
  apply(next) {
    return this.#become({ state: next, past: [...this.history.past, this.state], future: [] });
  }

  /** Asks again what the state changes: another model may answer by now. */
  refresh = () => this.#become(this.history);

  undo() {
    const { state, past, future } = this.history;
    const last = past.at(-1);
    return last ? this.#become({ state: last, past: past.slice(0, -1), future: [state, ...future] }) : null;
  }

  redo() {
    const { state, past, future } = this.history;
    const [next, ...rest] = future;
    return next ? this.#become({ state: next, past: [...past, state], future: rest }) : null;
  }

  /**
   * Makes a state current and asks what it changes. If that is refused the reading returns to the last state that was
   * answered; if nobody answers it waits.
   * @param {History} next
   */
  async #become(next) {
    [this.history, this.pending] = [next, null];
    this.remember();
    const mine = ++this.turn;
    this.flight?.abort();
    const flight = new AbortController();
    const key = newKey(); // however often it is sent, it is put on record once
    this.flight = flight;
    this.changed("state");
    await this.#attempt(async () => {
      try {
        const answer = await this.ask(
          (digest) => this.app.api.interact(digest, this.request, { signal: flight.signal, key }),
          mine,
        );
        if (mine !== this.turn) return;
        [this.before, this.after, this.changes, this.doubts] = [
          answer.before,
          answer.after,
          answer.changes,
          answer.doubts,
        ];
        [this.model, this.timings] = [answer.model, answer.timings_ms];
        if (next.state.alpha === null) this.alpha = answer.alpha;
        this.answered = next;
        this.app.notices.showError("");
        this.changed("answer");
      } catch (error) {
        const away = error instanceof ApiError && error.status === 401; // signing in again brings it back
        if (mine === this.turn && !overtaken(error) && !away) {
          this.history = this.answered;
          this.remember();
          this.changed("answer");
        }
        throw error;
      }
    });
    if (mine === this.turn) await this.#loadMaps(mine);
  }

  /** @param {number} mine */
  async #loadMaps(mine) {
    await this.#attempt(async () => {
      const maps = await this.ask((digest) => this.app.api.maps(digest, this.request, this.flight?.signal), mine);
      if (mine !== this.turn) return;
      this.maps = maps;
      this.changed("maps");
    });
  }

  /**
   * Asks about the study, again and again while the server is away; one that has let the study go gets its file once
   * more.
   * @template T
   * @param {(digest: string) => Promise<T>} question
   * @param {number} [mine] the turn whose answer it is
   * @returns {Promise<T>}
   */
  async ask(question, mine) {
    const wanted = () => !this.closed && (mine === undefined || mine === this.turn);
    try {
      return await this.link.persist(() => question(this.digest), wanted);
    } catch (error) {
      const { file, name } = this.opened;
      if (!(error instanceof ApiError && error.forgotten && file)) throw error;
      const { digest } = await this.link.persist(() => this.app.api.upload(file, name || "study"), wanted);
      return this.link.persist(() => question(digest), wanted);
    }
  }

  /**
   * A finding box that has no name yet: the server ranks what it may be about, and the reader says what it is.
   * @param {import("../types.js").Box} box
   */
  async propose(box) {
    /** @type {Pending} */
    const mine = { box, ranked: null, all: false };
    this.pending = mine;
    this.remember();
    this.changed("state");
    await this.#attempt(() => rank(this, mine));
    if (this.pending !== mine) return;
    if (mine.ranked === null) this.pending = null; // it failed, and the page says why
    this.changed("state");
  }

  /** @param {() => Promise<void>} action */
  async #attempt(action) {
    this.sending += 1;
    this.changed("busy");
    try {
      await action();
    } catch (error) {
      if (!overtaken(error) && !this.closed) this.app.notices.explainError(error);
    } finally {
      this.sending -= 1;
      this.changed("busy");
    }
  }

  close() {
    clearTimeout(this.soon);
    this.remember();
    this.closed = true;
    this.turn += 1;
    this.flight?.abort();
  }
}
