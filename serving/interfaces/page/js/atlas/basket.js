// What is to be signed, and what it would do: the effect of all rejections on the validation studies, asked of the server
// whenever they change; then the signature.

import { button, element, refill } from "../dom.js";
import { plain, signed } from "../format.js";
import { strings } from "../strings.js";
import { explain } from "../worklist/queue.js";

/** @typedef {import("./types.js").Preview} Preview */
/** @typedef {import("./types.js").Prototype} Prototype */

const text = strings.atlas.basket;
const WAIT_MS = 250; // a reviewer who rejects five at once asks once

/**
 * @param {import("../types.js").App} app
 * @param {() => Promise<void>} sign
 * @param {() => void} discard
 */
export function basket(app, sign, discard) {
  const node = element("section", { class: "basket", "aria-label": text.title, hidden: true });
  /** @type {Preview | null} */
  let preview = null;
  let failed = "";
  let asked = "";
  let timer = 0;
  let asking = new AbortController();
  let [drafted, standing, signing] = [{ keep: 0, prune: 0 }, 0, false];

  /**
   * @param {{ keep: number, prune: number }} counts of what is drafted
   * @param {Prototype[]} pruned all that would be gone, with what was signed before
   * @param {number} before how many of these were signed before
   */
  function show(counts, pruned, before) {
    [drafted, standing] = [counts, before];
    const question = JSON.stringify(pruned);
    if (question !== asked) {
      asked = question;
      [preview, failed] = [null, ""];
      clearTimeout(timer);
      asking.abort();
      if (pruned.length) timer = window.setTimeout(() => void ask(pruned), WAIT_MS);
    }
    draw();
  }

  /** @param {Prototype[]} pruned */
  async function ask(pruned) {
    asking = new AbortController();
    const { signal } = asking;
    try {
      preview = await app.api.previewAtlas(pruned, signal);
    } catch (error) {
      if (signal.aborted) return;
      failed = explain(error);
    }
    if (!signal.aborted) draw();
  }

  async function onSign() {
    signing = true;
    draw();
    await sign();
    signing = false;
    draw();
  }

  function draw() {
    const count = drafted.keep + drafted.prune;
    node.hidden = count + standing === 0;
    const effect = standing + drafted.prune > 0;
    refill(
      node,
      element(
        "p",
        { class: "counts" },
        element("strong", {}, count ? text.drafted(drafted.keep, drafted.prune) : text.standing(standing)),
        count && standing ? element("span", { class: "quiet" }, text.standing(standing)) : "",
      ),
      element(
        "div",
        { class: "effect", role: "status", "aria-busy": String(effect && !preview && !failed) },
        ...(effect ? effects(preview, failed) : [element("span", { class: "quiet" }, text.noEffect)]),
      ),
      element("div", { class: "sign" }, buttons(count)),
    );
  }

  /** @param {number} count of reviews to sign */
  function buttons(count) {
    if (!count) return [];
    if (app.me.role === "reader") return [element("p", { class: "quiet" }, text.mayNot)];
    const signature = {
      class: "primary",
      id: "atlas-sign",
      disabled: signing,
      title: text.signWhy,
      "data-key": "sign",
    };
    return [
      button(text.discard, discard, { disabled: signing, "data-key": "discard" }),
      button(text.sign(count), onSign, signature),
    ];
  }

  return {
    node,
    show,
    close: () => {
      clearTimeout(timer);
      asking.abort();
    },
  };
}

/** @param {Preview | null} preview @param {string} failed */
function effects(preview, failed) {
  if (failed) return [element("span", { class: "failed" }, failed)];
  if (!preview) return [element("span", { class: "quiet" }, text.asking)];
  const { before, after, changed, studies } = preview;
  const parts = [
    moved(text.f1, before.macro_f1, after.macro_f1),
    before.pointing === null || after.pointing === null
      ? element("span", { class: "quiet" }, text.noBoxes)
      : moved(text.pointing, before.pointing, after.pointing),
  ];
  const rows = [
    ...preview.classes
      .filter((each) => differs(each.f1_before, each.f1_after))
      .map((each) => [text.f1Of(plain(each.name)), each.f1_before, each.f1_after]),
    ...preview.concepts
      .filter((each) => differs(each.pointing_before, each.pointing_after))
      .map((each) => [text.pointingOf(plain(each.name)), each.pointing_before, each.pointing_after]),
  ];
  const lines = rows.map(([name, from, to]) =>
    element("li", {}, moved(String(name), /** @type {number} */ (from), /** @type {number} */ (to))),
  );
  const details = lines.length
    ? [element("details", {}, element("summary", {}, text.byName), element("ul", {}, lines))]
    : [];
  return [...parts, element("span", { class: "quiet" }, text.changed(changed, studies)), ...details];
}

/** @param {number | null} from @param {number | null} to */
const differs = (from, to) => from !== null && to !== null && Math.abs(from - to) >= 0.0005;

/** @param {string} name @param {number} from @param {number} to */
function moved(name, from, to) {
  const delta = to - from;
  const way = differs(from, to) ? (delta < 0 ? "worse" : "better") : "same";
  return element(
    "span",
    { class: "moved" },
    `${name} `,
    element("span", { class: "number" }, `${from.toFixed(3)} → ${to.toFixed(3)} `),
    element("span", { class: `delta ${way}` }, way === "same" ? text.same : signed(delta, 3)),
  );
}
