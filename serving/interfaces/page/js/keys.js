// Which key does what: one table a view, which `?` shows. What is typed into a field is not for it.

import { button, byId, element } from "./dom.js";
import { strings } from "./strings.js";

/**
 * A line of the table. `key` is the event's, with "Ctrl+", "Alt+" or "Shift+" before it ("Shift+" for named keys only);
 * ⌘ counts as Ctrl. A line without `run` is for people: the part of the page that has the focus sees to it.
 * @typedef {{ key: string | string[], label: string, shown?: string, run?: (event: KeyboardEvent) => unknown }} Line
 */

/** @type {Array<{ title: string, lines: Line[] }>} */
let tables = [];

/** @param {KeyboardEvent} event */
function nameOf(event) {
  const named = event.key.length > 1;
  const key = named ? event.key : event.key.toLowerCase();
  const shifted = event.shiftKey && (named || event.ctrlKey || event.metaKey);
  return `${event.ctrlKey || event.metaKey ? "Ctrl+" : ""}${event.altKey ? "Alt+" : ""}${shifted ? "Shift+" : ""}${key}`;
}

/** @param {EventTarget | null} target */
const takesText = (target) =>
  target instanceof HTMLElement &&
  (target.isContentEditable ||
    target.matches(
      "textarea, select, input:not([type=radio], [type=checkbox], [type=range], [type=file], [type=button])",
    ));

/**
 * Adds a table until the answer is called.
 * @param {string} title
 * @param {Line[]} lines
 * @returns {() => void}
 */
export function useKeys(title, lines) {
  const table = { title, lines };
  tables = [...tables, table];
  return () => {
    tables = tables.filter((each) => each !== table);
  };
}

export function showKeys() {
  const dialog = byId("keys");
  const rows = (/** @type {Line[]} */ lines) =>
    lines
      .filter((line) => line.label)
      .map((line) =>
        element(
          "tr",
          {},
          element("th", { scope: "row" }, element("kbd", {}, line.shown ?? [line.key].flat().join(", "))),
          element("td", {}, line.label),
        ),
      );
  dialog.replaceChildren(
    element("h2", { id: "keys-title" }, strings.keys.title),
    ...tables.map(({ title, lines }) =>
      element("table", {}, element("caption", {}, title), element("tbody", {}, ...rows(lines))),
    ),
    button(strings.keys.close, () => dialog.close(), { class: "primary", autofocus: true }),
  );
  dialog.showModal();
}

export function startKeys() {
  window.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || byId("keys").open || document.querySelector("dialog[open]")) return;
    const name = nameOf(event);
    // In a text field the letters are text, and undo is the field's own.
    if (takesText(event.target) && name !== "Escape") return;
    for (const { lines } of [...tables].reverse()) {
      const line = lines.find((each) => each.run && [each.key].flat().includes(name));
      if (!line?.run) continue;
      if (line.run(event) !== false) event.preventDefault();
      return;
    }
  });
  byId("show-keys").addEventListener("click", showKeys);
  useKeys(strings.keys.everywhere, [
    { key: "?", label: strings.keys.show, run: showKeys },
    { key: "g", label: strings.keys.worklist, run: () => location.assign("#/worklist") },
  ]);
}
