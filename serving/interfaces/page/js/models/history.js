// What was in service when, and the way back, for administrators.

import { button, element, tableHead } from "../dom.js";
import { brief, when } from "../format.js";
import { strings } from "../strings.js";
import { explain } from "../worklist/queue.js";

/** @typedef {import("./types.js").ModelsAnswer} ModelsAnswer */

const text = strings.models.history;

/** @param {ModelsAnswer} answer */
export function history(answer) {
  if (!answer.history.length) return element("p", { class: "quiet" }, text.none);
  const serving = new Set(answer.models.map(({ role, digest }) => `${role} ${digest}`));
  const rows = [...answer.history].reverse().map((change) => {
    const now = serving.delete(`${change.role} ${change.digest}`); // the latest of each is what serves now
    return element(
      "tr",
      {},
      element("td", {}, when(change.at)),
      element("td", {}, strings.models.roles[change.role]),
      element(
        "td",
        {},
        change.digest ? text.version(change.version) : text.ended,
        now && element("span", { class: "mark agreed" }, text.now),
      ),
      element("td", {}, change.digest ? element("code", { title: change.digest }, brief(change.digest)) : "–"),
      element(
        "td",
        {},
        change.previous_digest
          ? element("code", { title: change.previous_digest }, brief(change.previous_digest))
          : text.first,
      ),
      element("td", { class: "number" }, String(change.record.number)),
    );
  });
  return element("table", { class: "history" }, tableHead(text.columns), element("tbody", {}, rows));
}

/**
 * A button, and the question before it is done.
 * @param {import("../types.js").App} app
 * @param {() => import("./types.js").Served | undefined} champion
 * @param {() => void} onDone
 */
export function rollback(app, champion, onDone) {
  if (app.me.role !== "admin") return element("p", { class: "quiet" }, text.adminsOnly);
  const reason = /** @type {HTMLTextAreaElement} */ (
    element("textarea", { id: "rollback-reason", rows: 3, maxlength: 1000, required: true })
  );
  const about = element("p");
  const failed = element("p", { class: "failed", role: "alert" });
  const confirm = element("button", { class: "danger", id: "rollback-confirm" }, text.confirm);
  const onsubmit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    confirm.toggleAttribute("disabled", true);
    try {
      const done = await app.api.rollback(reason.value.trim());
      dialog.close();
      reason.value = "";
      app.notices.say(text.done(done.from, done.to));
      onDone();
    } catch (error) {
      failed.textContent = explain(error);
    }
    confirm.toggleAttribute("disabled", false);
  };
  const dialog = /** @type {HTMLDialogElement} */ (
    element(
      "dialog",
      { class: "rollback", "aria-labelledby": "rollback-title" },
      element(
        "form",
        { onsubmit },
        element("h2", { id: "rollback-title" }, text.title),
        about,
        element("p", { class: "quiet" }, text.consequence),
        element("label", { for: "rollback-reason" }, text.reason),
        reason,
        failed,
        element(
          "div",
          { class: "sign" },
          button(text.cancel, () => dialog.close()),
          confirm,
        ),
      ),
    )
  );
  const open = () => {
    failed.textContent = "";
    about.textContent = text.about(champion()?.version ?? "–");
    dialog.showModal();
    reason.focus();
  };
  return element("div", {}, button(text.open, open, { class: "danger", id: "rollback" }), dialog);
}
