// How the image and its map are looked at: controls, and the legend of the map.

import { button, byId, element, styled } from "../dom.js";
import { strings } from "../strings.js";
import { PALETTES } from "../viewer/colours.js";
import { PLAIN, bounded } from "../viewer/contrast.js";

/** @typedef {import("../viewer/viewer.js").Viewer} Viewer */
/** @typedef {import("../viewer/viewer.js").Looks} Looks */

const text = strings.reading.looks;
const MAPS = ["heat", "contour", "none"];

/** @param {Viewer} viewer @param {(alpha: number) => void} onAlpha */
export function buildLooks(viewer, onAlpha) {
  const set = (/** @type {Partial<Looks>} */ changes) => viewer.setLooks(changes);
  const contrast = (/** @type {object} */ changes) =>
    set({ contrast: bounded({ ...viewer.looks.contrast, ...changes }) });
  const check = (
    /** @type {string} */ id,
    /** @type {string} */ label,
    /** @type {(on: boolean) => void} */ run,
    title = "",
  ) =>
    element(
      "label",
      { class: "check", title },
      element("input", { type: "checkbox", id, onchange: (/** @type {any} */ event) => run(event.target.checked) }),
      ` ${label}`,
    );
  const slider = (
    /** @type {string} */ id,
    /** @type {string} */ label,
    /** @type {object} */ limits,
    /** @type {(value: number) => void} */ run,
  ) =>
    element(
      "label",
      { class: "slider", for: id },
      `${label} `,
      element("input", {
        type: "range",
        id,
        ...limits,
        oninput: (/** @type {any} */ event) => run(Number(event.target.value)),
      }),
    );
  const map = (/** @type {string} */ name) =>
    element(
      "label",
      {},
      element("input", { type: "radio", name: "map", value: name, onchange: () => set({ map: name }) }),
      element("span", {}, /** @type {any} */ (text)[name]),
    );
  const zoom = (/** @type {string} */ sign, /** @type {string} */ label, /** @type {() => void} */ run) =>
    button(sign, run, { "aria-label": label, title: label });
  buildAlpha(onAlpha);
  byId("looks").replaceChildren(
    element(
      "p",
      { class: "legend" },
      element("span", { id: "map-name" }),
      element("span", { id: "ramp", class: "ramp", "aria-hidden": "true" }, element("span", { class: "below" })),
      element("span", { id: "map-limit" }),
      element("span", { class: "gap" }),
      element(
        "span",
        { class: "zoom" },
        zoom("−", text.out, () => viewer.zoom(1 / 1.4)),
        zoom("+", text.in, () => viewer.zoom(1.4)),
        zoom("⤢", text.whole, () => viewer.zoom(0)),
      ),
    ),
    element("p", { id: "map-nothing", class: "nothing", hidden: true }),
    element(
      "div",
      { class: "controls" },
      element(
        "fieldset",
        { class: "segmented small" },
        element("legend", { class: "visually-hidden" }, text.map),
        MAPS.map(map),
      ),
      slider("opacity", text.opacity, { min: 0, max: 100 }, (value) => set({ opacity: value / 100 })),
      check("cells", text.cells, (cells) => set({ cells }), text.cellsTitle),
      check("show-boxes", text.boxes, (boxes) => set({ boxes })),
      element(
        "details",
        { class: "more" },
        element("summary", {}, text.more),
        element(
          "div",
          { class: "controls" },
          slider("contrast-width", text.width, { min: 2, max: 510 }, (width) => contrast({ width })),
          slider("contrast-level", text.level, { min: 0, max: 255 }, (level) => contrast({ level })),
          check("invert", text.invert, (invert) => contrast({ invert })),
          button(text.plain, () => set({ contrast: PLAIN })),
          element(
            "label",
            { for: "palette" },
            `${text.palette} `,
            element(
              "select",
              { id: "palette", onchange: (/** @type {any} */ event) => set({ palette: event.target.value }) },
              Object.keys(PALETTES).map((name) => element("option", { value: name }, name)),
            ),
          ),
        ),
      ),
    ),
  );
}

/** α, beside the boxes that it is about. @param {(alpha: number) => void} onAlpha */
function buildAlpha(onAlpha) {
  byId("alpha-part").replaceChildren(
    element(
      "label",
      { class: "slider alpha", for: "alpha", title: text.alphaTitle },
      `${text.alpha} `,
      element("input", {
        type: "range",
        id: "alpha",
        min: 0,
        max: 1,
        step: 0.05,
        disabled: true,
        onchange: (/** @type {any} */ event) => onAlpha(Number(event.target.value)),
      }),
      " ",
      element("output", { id: "alpha-value", for: "alpha" }),
    ),
  );
}

/** Shows in the controls how it is looked at. @param {Looks} looks */
export function drawLooks({ contrast, map, cells, palette, opacity, boxes }) {
  const chosen = document.querySelector(`input[name="map"][value="${map}"]`);
  /** @type {HTMLInputElement} */ (chosen).checked = true;
  Object.assign(byId("opacity"), { value: Math.round(opacity * 100), disabled: map === "none" });
  byId("cells").checked = cells;
  byId("show-boxes").checked = boxes;
  byId("invert").checked = contrast.invert;
  byId("contrast-width").value = contrast.width;
  byId("contrast-level").value = contrast.level;
  byId("palette").value = palette;
  byId("ramp").className = `ramp ${palette}`;
}

/** @param {string} concept @param {number} most of its map @param {number} absent @param {number} limit */
export function drawLegend(concept, most, absent, limit) {
  const { map, scale, absent: level, nothing } = strings.reading.legend;
  byId("map-name").textContent = map(concept);
  byId("ramp").parentElement.title = scale;
  const share = Math.min(Math.max(absent / Math.max(limit, 1e-6), 0), 1);
  styled(byId("ramp").firstElementChild, { width: `${share * 100}%` });
  byId("map-limit").textContent = `${level(absent.toFixed(2))} · ${limit.toFixed(2)}`;
  byId("map-nothing").hidden = most > absent;
  byId("map-nothing").textContent = most > absent ? "" : nothing(most.toFixed(2), absent.toFixed(2));
}

/** @param {number | null} own of the reader @param {any} model the model's, one or each concept's own */
export function drawAlpha(own, model) {
  const alpha = own ?? model;
  const single = typeof alpha === "number";
  const shown = single ? `α ${alpha.toFixed(2)}` : text.each;
  Object.assign(byId("alpha"), { disabled: false, value: single ? alpha : 0.5 });
  byId("alpha-value").textContent = own === null ? text.models(shown) : shown;
}
