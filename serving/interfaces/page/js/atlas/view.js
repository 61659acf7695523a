// The review of the atlas: every prototype with what it looks like and what it does, a draft of verdicts, what they would
// do, and the signature.

import { button, element, refill } from "../dom.js";
import { plain } from "../format.js";
import { useKeys } from "../keys.js";
import { strings } from "../strings.js";
import { basket } from "./basket.js";
import { crops, decides, fires, similar, weights } from "./detail.js";
import { Draft, keyOf, prototypeOf } from "./draft.js";
import { filters } from "./filter.js";
import { grid } from "./grid.js";
import { onRecord, verdictForm } from "./verdict.js";

/** @typedef {import("./types.js").Entry} Entry */
/** @typedef {import("./types.js").Detail} Detail */
/** @typedef {import("./types.js").Review} Review */
/** @typedef {import("./types.js").Word} Word */

const text = strings.atlas;
const NO_REASON = /** @type {const} */ ({ reason: "none", comment: "" });

/** @type {import("../types.js").Mount} */
export function mount(root, _parameters, app) {
  /** @type {Entry[]} */
  let entries = [];
  /** @type {Map<string, Review>} */
  let reviews = new Map();
  /** @type {Set<string>} */
  let picked = new Set();
  /** @type {Map<string, Detail>} */
  const details = new Map();
  let chosen = "";
  let [withMap, noMap] = [false, ""];
  let gone = false;
  const draft = new Draft(app.models[0]?.digest ?? "", draw);

  const list = element("div", { class: "prototypes" });
  const panel = element("section", { class: "panel detail", "aria-labelledby": "detail-title" });
  const bulk = element("div", { class: "bulk", hidden: true });
  const signing = basket(app, sign, () => draft.say(draft.keys, null));
  const choice = filters(draw);
  const head = element(
    "div",
    { class: "head" },
    element("h2", {}, text.title),
    element("p", { class: "quiet" }, text.how),
  );
  root.replaceChildren(
    element("div", { class: "review" }, element("div", {}, head, choice.node, bulk, list), panel),
    signing.node,
  );

  async function load() {
    try {
      const [atlas, said] = await Promise.all([app.api.atlas(), app.api.reviews()]);
      if (gone) return;
      entries = atlas.entries;
      hold(said.reviews);
      chosen = entries.some((entry) => keyOf(entry) === app.store.get("prototype"))
        ? app.store.get("prototype")
        : keyOf(entries[0]);
      draw();
      void inspect(chosen);
    } catch (error) {
      app.notices.explainError(error);
    }
  }

  /** @param {Review[]} said */
  const hold = (said) => (reviews = new Map(said.map((review) => [keyOf(review), review])));

  /** What was said of a prototype: the draft before what is on record. @param {Entry} entry */
  function mark(entry) {
    const [word, review] = [draft.of(keyOf(entry)), reviews.get(keyOf(entry))];
    if (word) return { name: `draft ${word.verdict}`, text: text.marks.draft[word.verdict] };
    if (!entry.alive) return { name: "pruned", text: text.marks.pruned };
    if (!review) return { name: "none", text: text.marks.none };
    if (review.status === "agreed")
      return { name: `agreed ${review.verdict}`, text: text.marks.agreed[review.verdict] };
    return { name: review.status, text: text.marks[review.status] };
  }

  const picture = (/** @type {import("./types.js").Prototype} */ { concept, index }) => app.api.cropUrl(concept, index);
  const shownEntries = () =>
    choice.apply(entries, (entry) => ({ draft: draft.of(keyOf(entry)), review: reviews.get(keyOf(entry)) }));

  function draw() {
    if (!entries.length) return;
    const shown = shownEntries();
    const sections = grid(shown, { chosen, picked, mark, picture, onChoose: choose, onPick: pick });
    refill(list, ...(sections.length ? sections : [element("p", { class: "hint" }, text.noneLeft)]));
    drawBulk();
    drawDetail();
    drawBasket();
  }

  function drawBulk() {
    bulk.hidden = picked.size === 0;
    const words = [...picked].map((key) => JSON.stringify(draft.of(key)));
    const same = new Set(words).size === 1 ? draft.of([...picked][0]) : undefined;
    const clear = button(text.unpick, () => pickAll([]), { "data-key": "unpick" });
    refill(
      bulk,
      element("p", {}, text.picked(picked.size), clear),
      verdictForm(text.picked(picked.size), same, (word) => draft.say([...picked], word)),
    );
  }

  function drawBasket() {
    const words = Object.values(draft.words);
    const counts = {
      keep: words.filter((word) => word.verdict === "keep").length,
      prune: words.filter((word) => word.verdict === "prune").length,
    };
    const alive = new Set(entries.filter((entry) => entry.alive).map(keyOf));
    const drafted = draft.keys.filter((key) => draft.of(key).verdict === "prune");
    const before = [...reviews]
      .filter(([key, review]) => review.verdict === "prune" && review.status !== "disputed" && !draft.of(key))
      .map(([key]) => key);
    const pruned = [...before, ...drafted].filter((key) => alive.has(key)).sort();
    signing.show(counts, pruned.map(prototypeOf), before.filter((key) => alive.has(key)).length);
  }

  function drawDetail() {
    const entry = entries.find((each) => keyOf(each) === chosen);
    if (!entry) return;
    const detail = details.get(chosen);
    const map = element("input", { type: "checkbox", checked: withMap, onchange: toggleMap, "data-key": "map" });
    const onNoMap = () => {
      [withMap, noMap] = [false, text.noMap];
      drawDetail();
    };
    const section = (/** @type {{ title: string, why: string }} */ about, /** @type {HTMLElement} */ content) =>
      element(
        "section",
        {},
        element("h3", { title: about.why }, about.title),
        element("p", { class: "quiet" }, about.why),
        content,
      );
    const waiting = () => element("p", { class: "quiet" }, text.waiting);
    refill(
      panel,
      element("h2", { id: "detail-title" }, `${plain(entry.concept)}, ${text.prototype(entry.index)}`),
      element("label", { class: "check" }, map, text.map),
      element("p", { class: "quiet", role: "status" }, noMap),
      crops(entry, withMap, app.api.cropUrl, onNoMap),
      verdictForm(text.verdict.title, draft.of(chosen), (word) => draft.say([chosen], word)),
      element("div", { class: "record" }, ...onRecord(reviews.get(chosen), !entry.alive)),
      section(text.weights, weights(entry)),
      section(text.places, detail ? fires(detail) : waiting()),
      section(text.similar, detail ? similar(detail, picture, choose) : waiting()),
      section(text.decides, detail ? decides(detail) : waiting()),
    );
  }

  /** @param {string} key */
  async function inspect(key) {
    if (details.has(key)) return;
    const { concept, index } = prototypeOf(key);
    try {
      details.set(key, await app.api.prototype(concept, index));
      if (!gone && key === chosen) drawDetail();
    } catch (error) {
      if (!gone && key === chosen) app.notices.explainError(error);
    }
  }

  /** @param {string} key */
  function choose(key) {
    chosen = key;
    noMap = "";
    app.store.set({ prototype: key });
    draw();
    void inspect(key);
  }

  /** @param {string} key @param {boolean} isPicked */
  function pick(key, isPicked) {
    picked = new Set(isPicked ? [...picked, key] : [...picked].filter((each) => each !== key));
    draw();
    /** @type {HTMLElement | null} */ (list.querySelector(`[data-pick="${CSS.escape(key)}"]`))?.focus();
  }

  /** @param {string[]} keys */
  function pickAll(keys) {
    picked = new Set(keys);
    draw();
  }

  function toggleMap() {
    [withMap, noMap] = [!withMap, ""];
    drawDetail();
  }

  async function sign() {
    const said = draft.reviews;
    try {
      await app.api.review({ reviews: said }, crypto.randomUUID());
      hold((await app.api.reviews()).reviews);
      picked = new Set();
      draft.say(draft.keys, null);
      app.notices.say(text.signed(said.length));
    } catch (error) {
      app.notices.explainError(error);
    }
  }

  /** Goes to a card so many further on. @param {number} by */
  function step(by) {
    const shown = shownEntries().map(keyOf);
    const at = shown.indexOf(chosen);
    const next = shown[at < 0 ? 0 : Math.min(Math.max(at + by, 0), shown.length - 1)];
    if (!next) return;
    choose(next);
    /** @type {HTMLElement | null} */ (list.querySelector(`[data-key="${CSS.escape(next)}"]`))?.focus();
  }

  const word = (/** @type {Word["verdict"]} */ verdict) =>
    draft.say([chosen], { ...(draft.of(chosen) ?? NO_REASON), verdict });
  const forgetKeys = useKeys(text.title, [
    { key: ["ArrowRight", "ArrowDown"], shown: "→ or ↓", label: text.keys.next, run: () => step(1) },
    { key: ["ArrowLeft", "ArrowUp"], shown: "← or ↑", label: text.keys.previous, run: () => step(-1) },
    { key: "k", label: text.keys.keep, run: () => word("keep") },
    { key: "r", label: text.keys.prune, run: () => word("prune") },
    { key: "c", label: text.keys.clear, run: () => draft.say([chosen], null) },
    { key: "x", label: text.keys.pick, run: () => pick(chosen, !picked.has(chosen)) },
    { key: "m", label: text.keys.map, run: toggleMap },
  ]);
  void load();
  return () => {
    gone = true;
    forgetKeys();
    signing.close();
  };
}
