// A reading as a file: a picture with map and boxes, everything as JSON, or a DICOM structured report.

import { element } from "../dom.js";
import { brief, plain, when } from "../format.js";
import { strings } from "../strings.js";
import { canvasOf, contextOf } from "../viewer/contrast.js";
import { Overlay } from "../viewer/overlay.js";
import { SIGNS } from "./boxes.js";

/** @typedef {import("./session.js").Session} Session */

const text = strings.reading.save;
const LEAST_SIDE = 1024; // of a picture's longer side, in pixels
/** @type {Record<string, string>} as in reading.css */
const COLOURS = { focus: "#7cc4ff", ignore: "#ff8f8f", finding: "#6fdc9a" };

/** @param {Blob} blob @param {string} name */
function hand(blob, name) {
  const href = URL.createObjectURL(blob);
  const link = element("a", { href, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

/** @param {Session} session @param {string} end */
const nameOf = (session, end) => `reading-${brief(session.digest)}.${end}`;

/**
 * @param {Session} session @param {import("../viewer/viewer.js").Viewer} viewer
 * @param {string} caption
 */
export async function savePicture(session, viewer, caption) {
  const { picture, layer, looks, size } = viewer;
  if (!picture || !size) return;
  const scale = Math.max(1, LEAST_SIDE / Math.max(size.width, size.height));
  const [width, height, foot] = [Math.round(size.width * scale), Math.round(size.height * scale), 54];
  const canvas = canvasOf(width, height + foot);
  const context = contextOf(canvas);
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, size.width, size.height);
  if (layer) new Overlay().draw(context, layer, looks, size, 1 / scale);
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.font = "600 16px sans-serif";
  session.state.boxes.forEach((box, index) => {
    const [x, y] = [box.x_min * scale, box.y_min * scale];
    context.strokeStyle = context.fillStyle = COLOURS[box.kind];
    context.lineWidth = 3;
    context.setLineDash(box.kind === "ignore" ? [9, 5] : []);
    context.strokeRect(x, y, (box.x_max - box.x_min) * scale, (box.y_max - box.y_min) * scale);
    context.fillText(`${SIGNS[box.kind]}${index + 1} ${box.concept ? plain(box.concept) : ""}`, x + 6, y + 20);
  });
  context.fillStyle = "#e4eaf0";
  context.fillText(caption, 10, height + 22, width - 20);
  context.fillStyle = "#f2b45a";
  context.fillText(text.notice, 10, height + 44, width - 20);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  hand(/** @type {Blob} */ (blob), nameOf(session, "png"));
}

/** @param {Session} session */
export function saveNumbers(session) {
  const { digest, size, state, before, after, changes, comment, opened } = session;
  const all = {
    notice: text.notice,
    digest,
    model: opened.answer.model,
    image: size,
    state,
    comment,
    before,
    after,
    changes,
    exported_at: new Date().toISOString(),
  };
  hand(new Blob([JSON.stringify(all, null, 2)], { type: "application/json" }), nameOf(session, "json"));
}

/**
 * What a report is about: what was signed, if that is what is on the screen, else what was said so far.
 * @param {Session} session @param {number | null} record of the signed reading
 */
const about = (session, record) => (record === null ? { interaction: session.request } : { reading: record });

/**
 * The menu of what can be saved; the DICOM images that a study came as are asked for when it opens.
 * @param {() => { session: Session, viewer: import("../viewer/viewer.js").Viewer } | null} current
 * @param {(session: Session) => string} caption
 * @param {() => number | null} record of the reading that is signed and on the screen
 */
export function buildMenu(current, caption, record) {
  const reports = element("div", { class: "reports" });
  const menu = /** @type {HTMLDetailsElement} */ (
    element("details", { class: "menu", id: "export" }, element("summary", {}, text.open))
  );
  const entry = (/** @type {string} */ label, /** @type {(session: Session) => unknown} */ run) =>
    element(
      "button",
      {
        type: "button",
        onclick: async () => {
          menu.open = false;
          const session = current()?.session;
          try {
            if (session) await run(session);
          } catch (error) {
            session?.app.notices.explainError(error);
          }
        },
      },
      label,
    );
  const viewer = () => /** @type {any} */ (current()).viewer;
  menu.append(
    element(
      "div",
      { class: "entries" },
      entry(text.png, (session) => savePicture(session, viewer(), caption(session))),
      entry(text.json, saveNumbers),
      reports,
    ),
  );
  menu.addEventListener("toggle", async () => {
    const session = current()?.session;
    if (!menu.open || !session) return;
    try {
      const { sources } = await session.app.api.sources(session.digest);
      const label = (/** @type {any} */ source) =>
        sources.length === 1 ? text.sr : text.srOf(source.modality ?? "image", when(source.added_at));
      const found = sources.map((/** @type {any} */ source) =>
        entry(label(source), async (one) => {
          const document = { ...about(one, record()), source: source.number };
          hand(await one.ask((digest) => one.app.api.report(digest, document)), nameOf(one, "dcm"));
        }),
      );
      const { origin } = session.opened;
      if (origin)
        found.push(
          entry(text.send(origin.node), async (one) => {
            await one.ask((digest) => one.app.api.send(digest, { ...about(one, record()), ...origin }));
            one.app.notices.say(text.sent(origin.node));
          }),
        );
      reports.replaceChildren(...(found.length ? found : [element("p", { class: "quiet" }, text.noSource)]));
    } catch (error) {
      session.app.notices.explainError(error);
    }
  });
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    menu.open = false;
    /** @type {HTMLElement} */ (menu.querySelector("summary")).focus();
  });
  return menu;
}
