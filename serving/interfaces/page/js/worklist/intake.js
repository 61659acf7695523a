// How studies get into the worklist: files that are opened or dropped, the samples, an archive. What is on its way and
// what was refused, and why, is shown here; it goes on when the reader turns to another view.

import { button, element } from "../dom.js";
import { strings } from "../strings.js";
import { archive } from "./archive.js";
import { dropped } from "./files.js";
import { progress } from "./progress.js";
import { Queue } from "./queue.js";

/** @typedef {import("../types.js").App} App */

const text = strings.worklist.intake;
const ACCEPT =
  ".png,.jpg,.jpeg,.tif,.tiff,.bmp,.webp,.dcm,image/png,image/jpeg,image/tiff,image/bmp,image/webp,application/dicom";

/** @type {Queue | null} */
let queue = null;

/** One for the page: it outlives the view. */
function queueOfPage() {
  if (queue) return queue;
  const made = new Queue();
  window.addEventListener("beforeunload", (event) => made.busy && event.preventDefault()); // the browser asks first
  return (queue = made);
}

/**
 * @param {App} app
 * @param {() => void} onArrived something was added
 */
export function intake(app, onArrived) {
  const jobs = queueOfPage();

  /** @param {File} file */
  const fileTask = (file) => ({
    name: file.name,
    send: async () => {
      const answer = await app.api.upload(file, file.name);
      app.remember(answer, { file, name: file.name });
      return answer;
    },
  });

  /** @param {any} sample */
  const sampleTask = (sample) => ({
    name: text.sample(sample.index + 1),
    send: async () => {
      const name = text.sample(sample.index + 1);
      const file = await app.api.sampleFile(sample.index);
      const answer = await app.api.upload(file, `${name}.png`);
      app.remember(answer, { file, name, sample });
      return answer;
    },
  });

  async function addSamples() {
    try {
      jobs.add((await app.api.samples()).map(sampleTask));
    } catch (error) {
      app.notices.explainError(error);
    }
  }

  const input = /** @type {HTMLInputElement} */ (
    element("input", { type: "file", id: "files", multiple: true, accept: ACCEPT })
  );
  input.addEventListener("change", () => {
    jobs.add([...(input.files ?? [])].map(fileTask));
    input.value = ""; // the same files may be opened again
  });
  const upload = element(
    "label",
    { class: "upload", for: "files" },
    input,
    element("span", {}, text.open),
    element("small", {}, text.kinds),
  );
  const sampleButtons = ["", "primary"].map((look) =>
    button(text.samples, addSamples, { class: `samples-button ${look}`, disabled: jobs.busy }),
  );

  // A drop anywhere on the view counts: who misses the frame should not lose the page to a picture.
  const over = (/** @type {DragEvent} */ event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    upload.classList.add("over");
  };
  const leave = (/** @type {DragEvent} */ event) => event.relatedTarget === null && upload.classList.remove("over");
  const drop = (/** @type {DragEvent} */ event) => {
    upload.classList.remove("over");
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    dropped(event.dataTransfer).then((files) => jobs.add(files.map(fileTask)), app.notices.explainError);
  };
  document.addEventListener("dragover", over);
  document.addEventListener("dragleave", leave);
  document.addEventListener("drop", drop);

  const count = () => jobs.jobs.filter((job) => job.state === "added").length;
  let added = count();
  const shown = progress(jobs);
  const unsubscribe = jobs.subscribe(() => {
    shown.draw();
    for (const each of sampleButtons) each.disabled = jobs.busy;
    if (count() > added) onArrived();
    added = count();
  });

  return {
    nodes: [
      element("h2", { id: "intake-title" }, text.title),
      upload,
      sampleButtons[0],
      shown.node,
      archive(app, (tasks) => jobs.add(tasks)),
    ],
    /** What somebody reads who opens the page for the first time. */
    welcome: [
      element("h3", {}, text.welcome),
      element("p", {}, text.welcomeHow),
      element(
        "ol",
        {},
        text.steps.map((step) => element("li", {}, step)),
      ),
      sampleButtons[1],
    ],
    open: () => input.click(),
    close: () => {
      unsubscribe();
      document.removeEventListener("dragover", over);
      document.removeEventListener("dragleave", leave);
      document.removeEventListener("drop", drop);
    },
  };
}
