// The boxes as a list, so that they need no mouse: arrow keys move one, with Shift they resize it, Delete removes it.

import { button, byId, element, refill } from "../dom.js";
import { plain } from "../format.js";
import { strings } from "../strings.js";
import { nudged } from "./state.js";

/** @typedef {import("../types.js").Box} Box */

const text = strings.reading.boxes;
/** @type {Record<string, string>} */
const NAMES = text.names;
/** @type {Record<string, string>} */
export const SIGNS = { focus: "+", ignore: "−", finding: "" };

/**
 * @param {Box} box @param {string} label @param {string} key
 * @param {{ size: import("../types.js").Size, remove: () => void, move: (box: Box) => void, select: () => void, removal: string, selected: boolean }} on
 */
function item(box, label, key, { size, remove, move, select, removal, selected }) {
  const extent = `${Math.round(box.x_max - box.x_min)}×${Math.round(box.y_max - box.y_min)} px`;
  const onkeydown = (/** @type {KeyboardEvent} */ event) => {
    const gone = event.key === "Delete" || event.key === "Backspace";
    if (event.ctrlKey || event.metaKey || (!gone && !event.key.startsWith("Arrow"))) return;
    event.preventDefault();
    const next = nudged(box, event, size);
    if (gone) remove();
    else if (next) move(next);
  };
  const attributes = {
    class: `box ${box.kind}`,
    "data-box": key,
    "data-key": `box ${key}`,
    "aria-pressed": String(selected),
    onkeydown,
    onfocus: select,
  };
  const chosen = button([label, element("small", {}, extent)], select, attributes);
  return element(
    "li",
    {},
    chosen,
    button("×", remove, { class: "remove", "aria-label": removal, "data-key": `remove ${key}` }),
  );
}

/**
 * @param {Box[]} boxes @param {Box | null} pending without a name yet
 * @param {{ size: import("../types.js").Size, selected: number | null, onRemove: (index: number) => void, onMove: (index: number, box: Box) => void, onSelect: (index: number) => void, onDiscard: () => void, onPropose: (box: Box) => void }} on
 */
export function drawBoxes(boxes, pending, { size, selected, onRemove, onMove, onSelect, onDiscard, onPropose }) {
  const items = boxes.map((box, index) => {
    const name = box.concept ? `: ${plain(box.concept)}` : "";
    return item(box, `${SIGNS[box.kind]}${index + 1} ${NAMES[box.kind]}${name}`, String(index), {
      size,
      selected: index === selected,
      remove: () => onRemove(index),
      move: (next) => onMove(index, next),
      select: () => onSelect(index),
      removal: text.remove(index + 1),
    });
  });
  if (pending) {
    const on = { size, selected: false, remove: onDiscard, move: onPropose, select: () => {}, removal: text.discard };
    items.push(item(pending, text.pending, "pending", on));
  }
  refill(byId("box-list"), ...items);
}
