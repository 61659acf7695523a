// The view of a reading: one study, its image, what the model says and what the reader answers.

import { button, byId, element } from "../dom.js";
import { brief, percent, plain } from "../format.js";
import { useKeys } from "../keys.js";
import { strings } from "../strings.js";
import { decoded } from "../viewer/contrast.js";
import { LOOKS, Viewer } from "../viewer/viewer.js";
import { Desk } from "./desk.js";
import { drawHints, hideHints } from "./hints.js";
import { tableOfKeys } from "./shortcuts.js";
import { createLink, overtaken } from "./link.js";
import { buildLooks, drawLooks } from "./looks.js";
import { buildQueue, fillQueue, openFiles } from "./queue.js";
import { buildMenu } from "./save.js";
import { Session } from "./session.js";
import { render } from "./screen.js";
import { createSigning } from "./sign.js";
import { build } from "./skeleton.js";

const text = strings.reading;
const tool = () => /** @type {HTMLInputElement} */ (document.querySelector('input[name="kind"]:checked')).value;

/** Drops of files on the image. @param {HTMLElement} well @param {import("../types.js").App} app */
function takeDrops(well, app) {
  well.addEventListener("dragover", (event) => event.preventDefault());
  well.addEventListener("drop", (event) => {
    event.preventDefault();
    const files = [...(event.dataTransfer?.files ?? [])];
    openFiles(
      files.map((file) => ({ file, name: file.name })),
      app,
    );
  });
}

/**
 * A study; a server that has let it go gets its file once more.
 * @param {string} digest @param {import("../types.js").App} app
 */
async function studyOf(digest, app) {
  try {
    return await app.api.study(digest);
  } catch (error) {
    const known = app.opened(digest);
    if (!(error instanceof app.api.ApiError && error.forgotten && known?.file)) throw error;
    return app.api.upload(known.file, known.name || "study");
  }
}

/** @type {import("../types.js").Mount} */
export function mount(root, { path }, app) {
  const digest = path[0] ?? null;
  const link = createLink(app.notices, () => desk?.changed("busy"));
  /** @type {Desk | null} */
  let desk = null;
  let left = false;
  build(root);
  drawHints();
  takeDrops(byId("well"), app);
  buildQueue(app, digest);
  const viewer = new Viewer(byId("stage"), {
    tool,
    onBox: (box) => desk?.draw({ ...box, kind: tool() }),
    onChange: (index, box) => desk?.reshape(index, box),
    onSelect: (index) => desk?.select(index),
    onLooks: (looks) => {
      drawLooks(looks);
      desk?.keepLooks(looks);
    },
  });
  buildLooks(viewer, (alpha) => desk?.setAlpha(alpha));
  drawLooks(LOOKS);

  /** @param {string} wanted */
  async function open(wanted) {
    byId("hint").textContent = text.loading;
    // Asked for even if its answer is known: that it was shown is put on record.
    app.remember(
      await link.persist(
        () => studyOf(wanted, app),
        () => !left,
      ),
    );
    const opened = app.opened(wanted);
    if (left || !opened) return;
    const session = new Session(opened, app, link, (what) => desk?.changed(what));
    const signing = createSigning(session, app, link, () => fillQueue(app, digest));
    desk = new Desk(session, viewer, signing);
    app.store.set({ study: wanted });
    app.notices.showMisfit(session.before.fits);
    const { width, height } = session.size;
    byId("study-name").textContent = `${opened.name || brief(wanted)} · ${width}×${height}`;
    for (const [id, hidden] of Object.entries({ hint: true, stage: false, "result-body": false, "result-empty": true }))
      byId(id).hidden = hidden;
    viewer.show(session.size, { ...LOOKS, ...session.looks });
    drawLooks(viewer.looks);
    buildActs(signing);
    render(desk);
    const picture = session.ask((each) => app.api.image(each)).then(decoded);
    await Promise.all([picture.then((pixels) => !left && desk?.setPixels(pixels)), session.start(), signing.load()]);
  }

  /** @param {ReturnType<typeof createSigning>} signing */
  function buildActs(signing) {
    const caption = (/** @type {Session} */ { after }) =>
      `${after.classes
        .filter(({ name }) => after.found.includes(name))
        .map((each) => `${plain(each.name)} ${percent(each.probability)}`)
        .join(", ")} · ${byId("map-name").textContent}`;
    byId("acts").replaceChildren(
      button(text.sign.open, signing.sign, { class: "primary", id: "sign", "aria-keyshortcuts": "Control+Enter" }),
      button(text.sign.next, signing.next, { id: "next-study" }),
      button(text.skip.open, signing.skip, { id: "skip" }),
      buildMenu(() => (desk ? { session: desk.session, viewer } : null), caption, signing.record),
      element("span", { class: "gap" }),
      button(text.hints.show, () => hideHints(false), { class: "quiet-button", id: "show-hints" }),
    );
  }

  const dropKeys = useKeys(
    text.keys.title,
    tableOfKeys(() => desk, viewer),
  );
  byId("undo").addEventListener("click", () => desk?.session.undo());
  byId("redo").addEventListener("click", () => desk?.session.redo());
  byId("reset").addEventListener("click", () => desk?.reset());
  byId("add-box").addEventListener("click", () => desk?.addBox());
  if (digest)
    open(digest).catch((error) => {
      if (left || overtaken(error)) return;
      byId("hint").textContent = text.empty;
      app.notices.explainError(error);
    });

  const leaving = () => desk?.session.remember();
  window.addEventListener("pagehide", leaving);
  return () => {
    left = true;
    window.removeEventListener("pagehide", leaving);
    dropKeys();
    desk?.session.close();
    link.close();
    viewer.close();
  };
}
