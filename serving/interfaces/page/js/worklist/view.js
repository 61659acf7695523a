// The worklist: which studies there are, what the model says of them, what has been done. The server sorts and filters;
// this view shows what it answers, a page at a time.

import { button, element, refill, tableHead } from "../dom.js";
import { useKeys } from "../keys.js";
import { strings } from "../strings.js";
import { choices, keptFilter, ownsArrows } from "./filter.js";
import { intake } from "./intake.js";
import { nextStudy } from "./next.js";
import { row } from "./rows.js";

/** @typedef {import("./types.js").WorklistItem} WorklistItem */

const PAGE = 50;
const AT_ONCE = 200; // what the server gives in one answer
const REFRESH_MS = 20_000; // others read too
const ARRIVAL_MS = 400; // forty files that arrive need not be forty lists
const text = strings.worklist;

/** @type {import("../types.js").Mount} */
export function mount(root, _parameters, app) {
  let filter = keptFilter();
  let wanted = PAGE;
  let due = 0; // the timer of the next look at what arrived
  let turn = 0; // an answer to an earlier question is stale

  const next = button(text.readNext, readNext, { class: "primary", id: "read-next", title: text.readNextWhy });
  const count = element("p", { class: "quiet", id: "worklist-count", role: "status" });
  const body = element("tbody");
  const caption = element("caption", { class: "visually-hidden" }, text.caption);
  const table = element("table", { class: "studies", hidden: true }, caption, tableHead(text.columns), body);
  const empty = element("div", { class: "empty", id: "worklist-empty", hidden: true });
  const more = button(text.more, () => load((wanted += PAGE)), { id: "worklist-more", hidden: true });
  const adding = intake(app, () => (due ||= window.setTimeout(() => void load(), ARRIVAL_MS)));
  const filters = choices((chosen) => {
    [filter, wanted] = [chosen, PAGE];
    void load();
  });
  const head = element(
    "div",
    { class: "head" },
    element("h2", { id: "worklist-title" }, text.title),
    count,
    element("span", { class: "gap" }),
    next,
  );
  const list = element(
    "section",
    { class: "list", "aria-labelledby": "worklist-title" },
    head,
    filters.node,
    table,
    empty,
    more,
  );
  root.replaceChildren(
    element("section", { class: "panel intake", "aria-labelledby": "intake-title" }, adding.nodes),
    list,
  );

  /** Asks for all that is shown at once, so that no page starts in the middle of a list that moved. */
  async function load(limit = wanted) {
    const mine = ++turn;
    due = 0;
    list.setAttribute("aria-busy", "true");
    try {
      /** @type {WorklistItem[]} */
      const items = [];
      /** @type {import("./types.js").WorklistAnswer} */
      let answer;
      /** @type {string | null} */
      let after = null;
      do {
        const page = { limit: Math.min(limit - items.length, AT_ONCE), after: after ?? undefined };
        answer = await app.api.worklist({ ...filter, help: filter.help || undefined, ...page });
        if (mine !== turn) return;
        items.push(...answer.items);
        after = answer.next_after;
      } while (items.length < limit && after !== null);
      draw(items, answer);
    } catch (error) {
      if (mine === turn) app.notices.explainError(error);
    }
    if (mine === turn) list.setAttribute("aria-busy", "false");
  }

  /** @param {WorklistItem[]} items @param {import("./types.js").WorklistAnswer} last the last of their pages */
  function draw(items, last) {
    const narrowed = filter.progress !== "all" || filter.help;
    refill(
      body,
      ...items.map((item) => row(item, app.api.thumbnailUrl(item.digest), app.opened(item.digest)?.name ?? "")),
    );
    count.textContent = text.count(items.length, last.total, last.total_exact);
    more.hidden = last.next_after === null;
    table.hidden = items.length === 0;
    filters.node.hidden = items.length === 0 && !narrowed;
    next.hidden = items.length === 0;
    empty.hidden = items.length > 0;
    empty.replaceChildren(
      ...(narrowed ? [element("p", {}, text.noneLeft), button(text.showAll, filters.reset)] : adding.welcome),
    );
  }

  async function readNext() {
    try {
      const digest = await nextStudy(app);
      if (digest) app.navigate(`#/read/${digest}`);
      else app.notices.say(text.allDone);
    } catch (error) {
      app.notices.explainError(error);
    }
  }

  /** @param {number} by how many rows the keyboard goes down */
  function step(by) {
    const links = [...body.querySelectorAll("a")];
    const at = links.findIndex((link) => link === document.activeElement);
    links[at < 0 ? 0 : Math.min(Math.max(at + by, 0), links.length - 1)]?.focus();
  }

  const forgetKeys = useKeys(text.title, [
    { key: ["ArrowDown", "j"], shown: "↓ or j", label: text.keys.down, run: (event) => !ownsArrows(event) && step(1) },
    { key: ["ArrowUp", "k"], shown: "↑ or k", label: text.keys.up, run: (event) => !ownsArrows(event) && step(-1) },
    { key: "Enter", label: text.keys.open },
    { key: "n", label: text.keys.next, run: readNext },
    { key: "o", label: text.keys.files, run: adding.open },
  ]);
  const awake = () => document.visibilityState === "visible" && void load();
  const timer = setInterval(awake, REFRESH_MS);
  document.addEventListener("visibilitychange", awake);
  void load();
  return () => {
    turn += 1;
    clearInterval(timer);
    clearTimeout(due);
    document.removeEventListener("visibilitychange", awake);
    forgetKeys();
    adding.close();
  };
}
