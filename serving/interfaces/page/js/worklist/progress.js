// How far the queue is, and what was refused and why.

import { button, element, refill } from "../dom.js";
import { strings } from "../strings.js";

/** @typedef {import("./queue.js").Job} Job */
/** @typedef {import("./queue.js").Queue} Queue */

const text = strings.worklist.intake;

/** The server's sentence mostly begins with the file's name. @param {Job} job */
const sentence = ({ name, message }) => (message.startsWith(`${name}:`) ? message : `${name}: ${message}`);

/**
 * @param {Queue} queue
 * @returns {{ node: HTMLElement, draw: () => void }}
 */
export function progress(queue) {
  const bar = element("progress", { "aria-label": text.title });
  const said = element("p", { role: "status" });
  const refusals = element("div", { role: "alert" });
  const buttons = element("div", { class: "chips" });
  const node = element("div", { class: "progress", id: "intake-progress" }, bar, said, refusals, buttons);
  let told = "";

  function draw() {
    const { jobs, busy } = queue;
    const refused = jobs.filter((job) => job.state === "refused");
    const added = jobs.filter((job) => job.state === "added");
    const done = added.length + refused.length;
    node.hidden = jobs.length === 0;
    bar.hidden = !busy;
    bar.setAttribute("max", String(jobs.length || 1));
    bar.setAttribute("value", String(done));
    said.textContent = busy
      ? text.sending(done, jobs.length)
      : text.sent(added.length, new Set(added.map((job) => job.digest)).size);
    if (told !== refused.map(sentence).join("\n")) {
      // only when it changed, or a screen reader hears it again with every file
      told = refused.map(sentence).join("\n");
      const list = element(
        "ul",
        { class: "refused" },
        refused.map((job) => element("li", {}, sentence(job))),
      );
      refusals.replaceChildren(...(refused.length ? [element("p", {}, text.refused(refused.length)), list] : []));
    }
    const own = busy
      ? [button(text.stop, () => queue.stop(), { "data-key": "stop" })]
      : [button(text.clear, () => queue.clear(), { "data-key": "clear" })];
    if (refused.length && !busy) own.unshift(button(text.again, () => queue.retry(), { "data-key": "again" }));
    refill(buttons, ...own);
  }

  draw();
  return { node, draw };
}
