// What champion and challenger say of the same study, as they predict it and with what this reader signed.

import { button, element, refill, styled, tableHead } from "../dom.js";
import { brief, percent, plain, signed } from "../format.js";
import { strings } from "../strings.js";

/** @typedef {import("./types.js").Comparison} Comparison */
/** @typedef {import("./types.js").Prediction} Prediction */

const text = strings.models.compare;
const OFFERED = 12;

/**
 * @param {import("../types.js").App} app
 * @returns {{ node: HTMLElement, load: () => Promise<void> }}
 */
export function compare(app) {
  const choices = element("ul", { class: "choices", "aria-label": text.choose });
  const result = element("div", { class: "compared", role: "status" });
  const node = element("div", {}, choices, result);
  /** @type {string[]} */
  let digests = [];
  let chosen = app.store.get("study") ?? "";
  let turn = 0;

  async function load() {
    try {
      const { items } = await app.api.worklist({ order: "margin", limit: OFFERED });
      digests = items.map((/** @type {{ digest: string }} */ { digest }) => digest);
      if (chosen && !digests.includes(chosen)) digests = [chosen, ...digests].slice(0, OFFERED);
      draw();
      if (!digests.length)
        return result.replaceChildren(
          element("p", {}, text.noStudies, " ", element("a", { href: "#/worklist" }, text.toWorklist)),
        );
      await choose(chosen || digests[0]);
    } catch (error) {
      app.notices.explainError(error);
    }
  }

  function draw() {
    const items = digests.map((digest) => {
      const name = app.opened(digest)?.name || text.study(brief(digest));
      const image = element("img", {
        src: app.api.thumbnailUrl(digest),
        alt: "",
        width: 64,
        height: 64,
        loading: "lazy",
      });
      return element(
        "li",
        {},
        button([image, element("span", {}, name)], () => choose(digest), {
          "aria-pressed": String(digest === chosen),
          "data-key": digest,
        }),
      );
    });
    refill(choices, ...items);
  }

  /** @param {string} digest */
  async function choose(digest) {
    const mine = ++turn;
    chosen = digest;
    draw();
    result.setAttribute("aria-busy", "true");
    try {
      const state = await signedState(digest);
      const answer = /** @type {Comparison} */ (await app.api.compare(digest, state ?? {}));
      if (mine === turn) result.replaceChildren(...drawn(answer, state !== null));
    } catch (error) {
      if (mine === turn) result.replaceChildren();
      if (mine === turn) app.notices.explainError(error);
    }
    if (mine === turn) result.setAttribute("aria-busy", "false");
  }

  /** What this reader signed of a study; null: nothing. @param {string} digest */
  async function signedState(digest) {
    const { readings } = await app.api.readings(digest);
    return (
      readings.find((/** @type {any} */ each) => each.reader === app.me.actor && each.decision === "keep")?.state ??
      null
    );
  }

  return { node, load };
}

/** @param {Comparison} answer @param {boolean} corrected */
function drawn({ champion, challenger }, corrected) {
  const sides = [champion, ...(challenger ? [challenger] : [])];
  const block = (/** @type {string} */ title, /** @type {Prediction[]} */ predictions) =>
    element(
      "section",
      {},
      element("h4", {}, title),
      verdicts(predictions),
      ...table(
        text.classes,
        predictions.map((each) => each.classes),
      ),
      element(
        "details",
        {},
        element("summary", {}, text.concepts),
        ...table(
          text.concepts,
          predictions.map((each) => each.concepts),
        ),
      ),
    );
  const blocks = [
    block(
      text.before,
      sides.map((side) => side.before),
    ),
  ];
  if (corrected)
    blocks.push(
      block(
        text.after,
        sides.map((side) => side.after),
      ),
    );
  return [
    ...(challenger ? [] : [element("p", { class: "quiet" }, text.alone)]),
    element("div", { class: "blocks" }, blocks),
  ];
}

/** Whether they say the same. @param {Prediction[]} predictions */
function verdicts(predictions) {
  const said = predictions.map((each) => each.found.map(plain).join(", ") || text.nothing);
  if (said.length < 2) return element("p", {}, said[0]);
  const same = said[0] === said[1];
  return element("p", { class: same ? "same" : "differ" }, same ? text.same(said[0]) : text.differ(said[0], said[1]));
}

/** @param {string} title @param {Array<Array<{ name: string, probability: number }>>} columns */
function table(title, columns) {
  const roles = Object.values(strings.models.roles).slice(0, columns.length);
  const names = [...new Set(columns.flatMap((column) => column.map(({ name }) => name)))];
  const rows = names.map((name) => {
    const values = columns.map((column) => column.find((each) => each.name === name)?.probability);
    const cells = values.map((value) =>
      value === undefined
        ? element("td", {}, "–")
        : element(
            "td",
            {},
            element(
              "span",
              { class: "bar", "aria-hidden": "true" },
              styled(element("span", { class: "fill" }), { width: `${value * 100}%` }),
            ),
            element("span", { class: "number" }, percent(value)),
          ),
    );
    const [one, other] = values;
    const delta = one === undefined || other === undefined ? 0 : Math.round(other * 100) - Math.round(one * 100);
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, plain(name)),
      cells,
      columns.length > 1 && element("td", { class: "number delta" }, delta ? signed(delta, 0) : ""),
    );
  });
  const heads = [title, ...roles, ...(columns.length > 1 ? [text.points] : [])];
  return [element("table", { class: "probabilities" }, tableHead(heads), element("tbody", {}, rows))];
}
