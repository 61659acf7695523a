// What was measured of the models on the test studies, side by side.

import { element, tableHead } from "../dom.js";
import { signed } from "../format.js";
import { strings } from "../strings.js";

/** @typedef {import("./types.js").Served} Served */

const text = strings.models.metrics;
/** @type {Record<string, string>} */
const NAMES = text.names;
const LOWER_IS_BETTER = ["ece", "aurc"]; // what the metrics mean, not a rule of the server

/**
 * Numbers of a nested result by their path.
 * @param {Record<string, any>} nested
 * @param {string} prefix
 * @returns {Array<[string, number]>}
 */
function flat(nested, prefix = "") {
  return Object.entries(nested).flatMap(([name, value]) => {
    if (typeof value === "number") return [/** @type {[string, number]} */ ([prefix + name, value])];
    return value && typeof value === "object" ? flat(value, `${prefix}${name}.`) : [];
  });
}

/** @param {string} name @param {number} value */
const shown = (name, value) =>
  Number.isInteger(value) && /studies|pairs/.test(name) ? value.toLocaleString("en") : value.toFixed(3);

/**
 * One table a part of the test split.
 * @param {Served[]} models
 * @returns {HTMLElement[]}
 */
export function metrics(models) {
  const parts = [...new Set(models.flatMap(({ manifest }) => Object.keys(manifest.metrics)))];
  if (!parts.length) return [element("p", { class: "quiet" }, text.none)];
  const apart = new Set(models.map(({ manifest }) => manifest.data_digest)).size > 1;
  return [
    ...(apart ? [element("p", { class: "help" }, text.otherData)] : []),
    ...parts.map((part) => table(part, models)),
  ];
}

/** @param {string} part @param {Served[]} models */
function table(part, models) {
  const values = models.map(({ manifest }) => new Map(flat(manifest.metrics[part] ?? {})));
  const names = [...new Set(values.flatMap((each) => [...each.keys()]))];
  const rows = names.map((name) => {
    const cells = values.map((each) =>
      element("td", { class: "number" }, each.has(name) ? shown(name, /** @type {number} */ (each.get(name))) : "–"),
    );
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, NAMES[name] ?? name),
      cells,
      values.length > 1 && difference(name, values[0].get(name), values[1].get(name)),
    );
  });
  const heads = [
    text.metric,
    ...models.map(({ role }) => strings.models.roles[role]),
    ...(models.length > 1 ? [text.difference] : []),
  ];
  return element(
    "table",
    { class: "metrics" },
    element("caption", {}, text.part(part)),
    tableHead(heads),
    element("tbody", {}, rows),
  );
}

/** @param {string} name @param {number | undefined} champion @param {number | undefined} challenger */
function difference(name, champion, challenger) {
  if (champion === undefined || challenger === undefined || /studies|pairs|chance|centre/.test(name))
    return element("td", {}, "");
  const delta = challenger - champion;
  if (Math.abs(delta) < 0.0005) return element("td", { class: "number quiet" }, text.same);
  const better = LOWER_IS_BETTER.includes(name) ? delta < 0 : delta > 0;
  const word = better ? text.better : text.worse;
  return element("td", { class: `number ${better ? "better" : "worse"}` }, `${signed(delta, 3)} ${word}`);
}
