// The keys of the reading view.

import { byId } from "../dom.js";
import { strings } from "../strings.js";

const text = strings.reading.keys;
const STEP = 60; // pixels of the screen by which an arrow key pushes the image
const TURN = 10; // grey values by which a key changes the contrast
const MAPS = ["heat", "contour", "none"];

/** @param {string} name */
const tool = (name) => () => {
  const input = /** @type {HTMLInputElement} */ (document.querySelector(`input[name="kind"][value="${name}"]`));
  input.checked = true;
};

/** @param {string} id presses a button if it can be pressed */
const press = (id) => () => {
  const node = document.getElementById(id);
  if (node instanceof HTMLButtonElement && !node.disabled) node.click();
};

/**
 * @param {() => import("./desk.js").Desk | null} desk
 * @param {import("../viewer/viewer.js").Viewer} viewer
 * @returns {import("../keys.js").Line[]}
 */
export function tableOfKeys(desk, viewer) {
  const looks = () => viewer.looks;
  const contrast = (/** @type {number} */ level, /** @type {number} */ width) => () => {
    const now = looks().contrast;
    viewer.setLooks({
      contrast: {
        ...now,
        level: Math.min(Math.max(now.level + level, 0), 255),
        width: Math.min(Math.max(now.width + width, 2), 510),
      },
    });
  };
  const push = (/** @type {number} */ dx, /** @type {number} */ dy) => () => {
    if (document.activeElement !== byId("stage")) return false;
    return viewer.pan(dx * STEP, dy * STEP);
  };
  const zoom = (/** @type {number} */ factor) => () => viewer.zoom(factor);
  const nextMap = () => viewer.setLooks({ map: MAPS[(MAPS.indexOf(looks().map) + 1) % MAPS.length] });
  const hidden = ""; // a second key of the line above
  return [
    { key: "f", shown: "F", label: text.focus, run: tool("focus") },
    { key: "i", shown: "I", label: text.ignore, run: tool("ignore") },
    { key: "n", shown: "N", label: text.finding, run: tool("finding") },
    { key: "w", shown: "W", label: text.contrast, run: tool("contrast") },
    { key: "p", shown: "P", label: text.pan, run: tool("pan") },
    { key: "b", shown: "B", label: text.add, run: press("add-box") },
    { key: ["Delete", "Backspace"], label: hidden, run: () => desk()?.removeSelected() },
    { key: "Ctrl+z", shown: "Ctrl+Z", label: text.undo, run: press("undo") },
    { key: ["Ctrl+Shift+z", "Ctrl+Shift+Z", "Ctrl+y"], shown: "Ctrl+Shift+Z", label: text.redo, run: press("redo") },
    { key: "j", shown: "J, K", label: text.concepts, run: () => desk()?.chooseNext(1) },
    { key: "k", label: hidden, run: () => desk()?.chooseNext(-1) },
    { key: "c", shown: "C", label: text.confirm, run: () => desk()?.toggle("confirmed") },
    { key: "x", shown: "X", label: text.reject, run: () => desk()?.toggle("rejected") },
    { key: "1", shown: "1, 2, 3", label: text.answer, run: press("question-yes") },
    { key: "2", label: hidden, run: press("question-no") },
    { key: "3", label: hidden, run: press("question-skip") },
    { key: "h", shown: "H", label: text.boxes, run: () => viewer.setLooks({ boxes: !looks().boxes }) },
    { key: "m", shown: "M", label: text.map, run: nextMap },
    { key: "r", shown: "R", label: text.cells, run: () => viewer.setLooks({ cells: !looks().cells }) },
    {
      key: "v",
      shown: "V",
      label: text.invert,
      run: () => viewer.setLooks({ contrast: { ...looks().contrast, invert: !looks().contrast.invert } }),
    },
    { key: "[", shown: "[, ]", label: text.level, run: contrast(TURN, 0) },
    { key: "]", label: hidden, run: contrast(-TURN, 0) },
    { key: "{", shown: "{, }", label: text.width, run: contrast(0, 2 * TURN) },
    { key: "}", label: hidden, run: contrast(0, -2 * TURN) },
    { key: ["+", "="], shown: "+, −, 0", label: text.zoom, run: zoom(1.4) },
    { key: "-", label: hidden, run: zoom(1 / 1.4) },
    { key: "0", label: hidden, run: zoom(0) },
    { key: "ArrowLeft", shown: "← ↑ ↓ →", label: text.push, run: push(1, 0) },
    { key: "ArrowRight", label: hidden, run: push(-1, 0) },
    { key: "ArrowUp", label: hidden, run: push(0, 1) },
    { key: "ArrowDown", label: hidden, run: push(0, -1) },
    {
      key: "Escape",
      shown: "Esc",
      label: text.escape,
      run: () => (desk()?.session.pending ? desk()?.discard() : viewer.gestures.cancel()),
    },
    { key: "Ctrl+Enter", label: text.sign, run: press("sign") },
    { key: ".", label: text.next, run: press("next-study") },
  ];
}
