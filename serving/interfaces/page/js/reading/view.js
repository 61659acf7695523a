// The view of the reading.

import { element } from "../dom.js";

/** @type {import("../types.js").Mount} */
export function mount(root, parameters, app) {
  root.replaceChildren(element("p", { class: "hint" }, "…"));
  return () => {};
}
