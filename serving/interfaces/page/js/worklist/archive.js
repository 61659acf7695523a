// Studies out of an archive that the deployment names, by accession number or study UID.

import { button, element } from "../dom.js";
import { strings } from "../strings.js";
import { explain } from "./queue.js";

/** @typedef {import("../types.js").App} App */
/** @typedef {import("./types.js").FoundInstance} FoundInstance */
/** @typedef {(tasks: import("./queue.js").Task[]) => void} Add */

const text = strings.worklist.archive;

/**
 * @param {App} app
 * @param {Add} add
 * @returns {HTMLElement}
 */
export function archive(app, add) {
  const node = /** @type {HTMLDetailsElement} */ (
    element("details", { class: "archive" }, element("summary", {}, text.title))
  );
  node.addEventListener("toggle", async () => {
    if (!node.open || node.childElementCount > 1) return;
    try {
      const { nodes } = await app.api.nodes();
      if (node.childElementCount > 1) return; // it was closed and opened meanwhile
      node.append(nodes.length ? form(app, nodes, add) : element("p", { class: "quiet" }, text.none));
    } catch (error) {
      app.notices.explainError(error);
    }
  });
  return node;
}

/**
 * @param {App} app
 * @param {string[]} nodes
 * @param {Add} add
 */
function form(app, nodes, add) {
  const options = nodes.map((name) => element("option", { value: name }, name));
  const node = /** @type {HTMLSelectElement} */ (element("select", { id: "archive-node" }, options));
  const kinds = Object.entries(text.kinds).map(([value, name]) => element("option", { value }, name));
  const kind = /** @type {HTMLSelectElement} */ (element("select", { id: "archive-kind" }, kinds));
  const value = /** @type {HTMLInputElement} */ (
    element("input", { id: "archive-value", required: true, maxlength: 64, autocomplete: "off" })
  );
  const results = element("div", { class: "results", "aria-live": "polite" });
  let turn = 0;

  async function search() {
    const mine = ++turn;
    results.replaceChildren(element("p", { class: "quiet" }, text.searching));
    try {
      const { instances } = await app.api.instances(node.value, { [kind.value]: value.value.trim() });
      if (mine === turn) results.replaceChildren(...list(instances));
    } catch (error) {
      if (mine === turn) results.replaceChildren(element("p", { class: "refused", role: "alert" }, explain(error)));
    }
  }

  /** @param {FoundInstance} found */
  function task({ study_uid, series_uid, instance_uid, modality }) {
    const [from, name] = [node.value, text.image(modality, node.value)];
    const send = async () => {
      const answer = await app.api.fetchInstance(from, { study_uid, series_uid, instance_uid });
      app.remember(answer, { name });
      return answer;
    };
    return { name, send };
  }

  /** @param {FoundInstance[]} found */
  function list(found) {
    if (!found.length) return [element("p", {}, text.nothing)];
    const rows = found.map((each) => {
      const about = [each.modality, day(each.study_date)].filter(Boolean).join(" · ") || text.unnamed;
      return element(
        "li",
        {},
        element("span", {}, about),
        button(text.add, () => add([task(each)])),
      );
    });
    const all = found.length > 1 ? [button(text.addAll(found.length), () => add(found.map(task)))] : [];
    return [element("ul", {}, rows), ...all];
  }

  const onsubmit = (/** @type {Event} */ event) => {
    event.preventDefault();
    void search();
  };
  return element(
    "form",
    { onsubmit },
    element("label", { for: "archive-node" }, text.node, node),
    element("label", { for: "archive-kind" }, text.by, kind),
    element("label", { for: "archive-value" }, text.value, value),
    element("button", {}, text.search),
    results,
  );
}

/** DICOM's YYYYMMDD as people write it. @param {string} date */
const day = (date) => (/^\d{8}$/.test(date) ? `${date.slice(0, 4)}-${date.slice(4, 6)}-${date.slice(6)}` : date);
