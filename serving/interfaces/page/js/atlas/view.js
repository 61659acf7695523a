// The review of the atlas: every prototype with what it looks like and what it does, a draft of verdicts, what they would
// do, and the signature.

import { button, element, refill } from "../dom.js";
import { useKeys } from "../keys.js";
import { ownsArrows } from "../worklist/filter.js";
import { strings } from "../strings.js";
import { basket } from "./basket.js";
import { Draft, keyOf, prototypeOf } from "./draft.js";
import { filters } from "./filter.js";
import { grid } from "./grid.js";
import { panel } from "./panel.js";
import { verdictForm } from "./verdict.js";

/** @typedef {import("./types.js").Entry} Entry */
/** @typedef {import("./types.js").Review} Review */
/** @typedef {import("./types.js").Word} Word */

const text = strings.atlas;
const NO_REASON = /** @type {const} */ ({ reason: "none", comment: "" });

/** @type {import("../types.js").Mount} */
export function mount(root, { path }, app) {
  /** @type {Entry[]} */
  let entries = [];
  /** @type {Map<string, Review>} */
  let reviews = new Map();
  /** @type {Set<string>} */
  let picked = new Set();
  let chosen = "";
  let gone = false;
  let bundle = ""; // the digest of that whose prototypes are shown
  let draft = new Draft(bundle, draw);

  const list = element("div", { class: "prototypes" });
  const detail = panel(app, (word, quietly) => draft.say([chosen], word, quietly), choose);
  const bulk = element("div", { class: "bulk", hidden: true });
  const signing = basket(app, sign, () => draft.say(draft.keys, null));
  const choice = filters(draw);
  const second = element("span");
  const head = element(
    "div",
    { class: "head" },
    element("h2", {}, text.title),
    element("p", { class: "quiet" }, text.how, " ", second),
  );
  root.replaceChildren(
    element("div", { class: "review" }, element("div", {}, head, choice.node, bulk, list), detail.node),
    signing.node,
  );

  const champion = async () => (await app.api.models()).models[0].digest;

  async function load() {
    try {
      const [digest, atlas, said] = await Promise.all([champion(), app.api.atlas(), app.api.reviews()]);
      if (gone) return;
      [bundle, entries, picked] = [digest, atlas.entries, new Set()];
      draft = new Draft(bundle, draw);
      hold(said);
      const wanted = path.length > 1 ? keyOf({ concept: path[0], index: Number(path[1]) }) : app.store.get("prototype");
      chosen = keyOf(
        entries.find((entry) => keyOf(entry) === wanted) ?? entries.find((entry) => entry.alive) ?? entries[0],
      );
      draw();
    } catch (error) {
      app.notices.explainError(error);
    }
  }

  const isAlive = (/** @type {string} */ key) => entries.some((entry) => keyOf(entry) === key && entry.alive);

  /** @param {{ reviews: Review[], second_reader: boolean }} said */
  function hold(said) {
    reviews = new Map(said.reviews.map((review) => [keyOf(review), review]));
    second.textContent = said.second_reader ? text.secondReader : "";
  }

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
      verdictForm({ title: text.picked(picked.size), id: "bulk", keys: true }, same, (word, quietly) =>
        draft.say([...picked], word, quietly),
      ),
    );
  }

  function drawBasket() {
    const words = Object.values(draft.words);
    const counts = {
      keep: words.filter((word) => word.verdict === "keep").length,
      prune: words.filter((word) => word.verdict === "prune").length,
    };
    const drafted = draft.keys.filter((key) => draft.of(key).verdict === "prune");
    const before = [...reviews]
      .filter(([key, review]) => review.verdict === "prune" && review.status !== "disputed" && !draft.of(key))
      .map(([key]) => key);
    const pruned = [...before, ...drafted].filter(isAlive).sort();
    signing.show(counts, pruned.map(prototypeOf), before.filter(isAlive).length);
  }

  function drawDetail() {
    const entry = entries.find((each) => keyOf(each) === chosen);
    if (entry) detail.show(entry, { word: draft.of(chosen), review: reviews.get(chosen), keys: picked.size === 0 });
  }

  /** @param {string} key */
  function choose(key) {
    chosen = key;
    app.store.set({ prototype: key });
    draw();
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

  async function sign() {
    const said = draft.reviews;
    try {
      if ((await champion()) !== bundle) {
        await load(); // a word on a prototype means that one, not its namesake in another bundle
        return app.notices.showError(text.otherModel);
      }
      await app.api.review({ reviews: said }, draft.key);
      hold(await app.api.reviews());
      picked = new Set();
      draft.say(said.map(keyOf), null);
      app.notices.say(text.signed(said.length));
      focusOn(chosen); // the button is gone
    } catch (error) {
      app.notices.explainError(error);
    }
  }

  const focusOn = (/** @type {string} */ key) =>
    /** @type {HTMLElement | null} */ (list.querySelector(`[data-key="${CSS.escape(key)}"]`))?.focus();

  /** Goes to a card so many further on. @param {number} by */
  function step(by) {
    const shown = shownEntries().map(keyOf);
    const at = shown.indexOf(chosen);
    const next = shown[at < 0 ? 0 : Math.min(Math.max(at + by, 0), shown.length - 1)];
    if (!next) return;
    choose(next);
    focusOn(next);
  }

  /** What the keys mean: those that are picked, else the one that is shown. @param {Word["verdict"] | null} verdict */
  function say(verdict) {
    const keys = (picked.size ? [...picked] : [chosen]).filter(isAlive);
    if (keys.length) draft.say(keys, verdict && { ...(draft.of(keys[0]) ?? NO_REASON), verdict });
  }

  const forgetKeys = useKeys(text.title, [
    {
      key: ["ArrowRight", "ArrowDown"],
      shown: "→ or ↓",
      label: text.keys.next,
      run: (event) => !ownsArrows(event) && step(1),
    },
    {
      key: ["ArrowLeft", "ArrowUp"],
      shown: "← or ↑",
      label: text.keys.previous,
      run: (event) => !ownsArrows(event) && step(-1),
    },
    { key: "k", label: text.keys.keep, run: () => say("keep") },
    { key: "r", label: text.keys.prune, run: () => say("prune") },
    { key: "c", label: text.keys.clear, run: () => say(null) },
    { key: "x", label: text.keys.pick, run: () => isAlive(chosen) && pick(chosen, !picked.has(chosen)) },
    { key: "m", label: text.keys.map, run: detail.toggleMap },
  ]);
  void load();
  return () => {
    gone = true;
    forgetKeys();
    signing.close();
    detail.close();
  };
}
