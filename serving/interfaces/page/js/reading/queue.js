// The studies beside the image: what waits for a reader, samples to try, and files to open.

import { byId, element } from "../dom.js";
import { nonbreaking, percent, plain } from "../format.js";
import { strings } from "../strings.js";

/** @typedef {import("../types.js").App} App */

const text = strings.reading.studies;
const SHOWN = 40;
export const ACCEPTED =
  ".png,.jpg,.jpeg,.tif,.tiff,.bmp,.webp,.dcm,image/png,image/jpeg,image/tiff,image/bmp,image/webp,application/dicom";

/**
 * Adds files one by one and opens the first; what cannot be read is said, and the others are added all the same.
 * @param {Array<{ file: Blob, name: string, sample?: any }>} files @param {App} app
 */
export async function openFiles(files, app) {
  let opened = 0;
  app.notices.showError("");
  for (const [index, { file, name, sample }] of files.entries()) {
    if (files.length > 1) app.notices.say(text.adding(index + 1, files.length));
    try {
      const hash = app.remember(await app.api.upload(file, name), { file, name, sample });
      if (opened === 0) app.navigate(hash);
      opened += 1;
    } catch (error) {
      app.notices.explainError(error);
    }
  }
  app.notices.say(opened > 1 ? text.added(opened) : "");
}

/** @param {any} item @param {string | null} current @param {App} app */
function row(item, current, app) {
  const mine = /** @type {any} */ (text.mine)[item.mine] ?? "";
  const notes = [
    `${plain(item.top)} ${item.confidence === null ? "" : nonbreaking(percent(item.confidence))}`,
    item.asks_for_help && text.help,
    mine,
  ].filter(Boolean);
  return element(
    "li",
    {},
    element(
      "a",
      {
        href: `#/read/${item.digest}`,
        "aria-current": item.digest === current ? "true" : null,
        class: `study ${item.mine}`,
        "data-key": item.digest,
      },
      element("img", { src: app.api.thumbnailUrl(item.digest), alt: "", width: "48", height: "48", loading: "lazy" }),
      element(
        "span",
        {},
        ...notes.map((note, index) =>
          element("span", { class: index === 0 ? "first" : note === text.help ? "asks" : "quiet" }, note),
        ),
      ),
    ),
  );
}

/** @param {App} app @param {string | null} current digest of the open study */
export function buildQueue(app, current) {
  const file = element("input", {
    type: "file",
    id: "file",
    multiple: true,
    accept: ACCEPTED,
    onchange: (/** @type {any} */ event) => {
      const files = [...event.target.files].map((each) => ({ file: each, name: each.name }));
      event.target.value = ""; // the same file may be opened again
      openFiles(files, app);
    },
  });
  byId("queue").replaceChildren(
    element("h2", { id: "queue-title" }, text.title),
    element(
      "label",
      { class: "upload", for: "file" },
      file,
      element("span", {}, text.open),
      element("small", {}, text.formats),
    ),
    element(
      "details",
      { class: "reference", id: "reference", hidden: true },
      element("summary", {}, text.reference),
      element("p", { id: "reference-text" }),
    ),
    element("ul", { id: "waiting", class: "waiting", "aria-label": text.list }),
    element(
      "details",
      { id: "sample-part", class: "sample-part" },
      element("summary", {}, text.samples),
      element("ul", { id: "samples", class: "samples", "aria-label": text.sampleList }),
    ),
  );
  showReference(current ? app.opened(current)?.sample : null);
  fillQueue(app, current);
}

/** What waits, as it is now. @param {App} app @param {string | null} current */
export const fillQueue = (app, current) => fill(app, current).catch(app.notices.explainError);

/** @param {App} app @param {string | null} current */
async function fill(app, current) {
  const [{ items }, samples] = await Promise.all([
    app.api.worklist({ order: "margin", progress: "all", limit: SHOWN }),
    app.api.samples(),
  ]);
  const list = document.getElementById("waiting");
  if (!list) return;
  list.replaceChildren(
    ...(items.length
      ? items.map((/** @type {any} */ item) => row(item, current, app))
      : [element("li", { class: "quiet" }, text.none)]),
  );
  if (items.length === 0) byId("sample-part").open = true; // never closed again: a reader may have opened it
  byId("samples").replaceChildren(...samples.map((/** @type {any} */ sample) => sampleItem(sample, current, app)));
  list.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
}

/** @param {any} sample @param {string | null} current @param {App} app */
function sampleItem(sample, current, app) {
  const open = async () => {
    try {
      await openFiles(
        [{ file: await app.api.sampleFile(sample.index), name: text.sample(sample.index + 1), sample }],
        app,
      );
    } catch (error) {
      app.notices.explainError(error);
    }
  };
  const shown = current !== null && app.opened(current)?.sample?.index === sample.index;
  const image = element("img", {
    src: app.api.sampleUrl(sample.index),
    alt: "",
    width: "72",
    height: "72",
    loading: "lazy",
  });
  return element(
    "li",
    {},
    element(
      "button",
      { type: "button", "aria-current": shown ? "true" : null, onclick: open },
      image,
      element("span", {}, String(sample.index + 1)),
    ),
  );
}

/** What the source says of a sample; nothing of any other study. @param {any} sample */
function showReference(sample) {
  byId("reference").hidden = !sample;
  if (!sample) return;
  byId("reference-text").textContent = text.truth(
    sample.study_id,
    plain(sample.diagnosis),
    sample.concepts.map(plain).join(", "),
  );
}
