// The end of a reading: signed or skipped, what other readers said, and the next study.

import { ApiError } from "../api.js";
import { button, byId, element } from "../dom.js";
import { percent, plain, when } from "../format.js";
import { strings } from "../strings.js";
import { nextStudy } from "../worklist/next.js";
import { tick } from "./hints.js";
import { newKey } from "./link.js";
import { sameWord, untouched } from "./state.js";

/** @typedef {import("./session.js").Session} Session */
/** @typedef {import("../types.js").App} App */

const text = strings.reading.sign;
const skipping = strings.reading.skip;

/**
 * The name of an act, the same as long as the same is sent, so that however often that happens it counts once.
 * @param {Session} session @param {unknown} body of its request
 */
function actKey(session, body) {
  const said = JSON.stringify(body);
  if (session.act?.said !== said) {
    session.act = { said, key: newKey() };
    session.remember();
  }
  return session.act.key;
}

/**
 * What would be signed, in a line.
 * @param {Session} session
 */
function summed({ state: { boxes, confirmed, rejected }, after: { found, classes } }) {
  const numbers = classes.filter(({ name }) => found.includes(name));
  const said = [
    ...boxes.map(({ kind, concept }) => (concept ? `${kind}: ${plain(concept)}` : kind)),
    ...confirmed.map((name) => text.confirmed(plain(name))),
    ...rejected.map((name) => text.rejected(plain(name))),
  ];
  const shown = numbers.map(({ name, probability }) => `${plain(name)} ${percent(probability)}`);
  return text.what(shown.join(", "), said.join(", "));
}

/**
 * A dialog with a form; `submit` is called once, with what was filled in, and the dialog closes when it is done.
 * @param {string} title @param {Array<HTMLElement>} fields @param {string} label of the button that submits
 * @param {(data: FormData) => Promise<boolean>} submit says whether it was done
 * @param {() => void} [then] once it was done and the dialog, which takes the keyboard back as it closes, is gone
 */
function ask(title, fields, label, submit, then) {
  const go = /** @type {HTMLButtonElement} */ (element("button", { class: "primary" }, label));
  const form = /** @type {HTMLFormElement} */ (
    element(
      "form",
      { method: "dialog" },
      ...fields,
      element(
        "div",
        { class: "chips" },
        go,
        button(text.cancel, () => dialog.close()),
      ),
    )
  );
  const dialog = /** @type {HTMLDialogElement} */ (
    element("dialog", { class: "act", "aria-labelledby": "act-title" }, element("h2", { id: "act-title" }, title), form)
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    go.disabled = true;
    const done = await submit(new FormData(form));
    dialog.close(); // also after a refusal, which the page says above everything else
    if (done) then?.();
  });
  dialog.addEventListener("close", () => dialog.remove());
  byId("results").append(dialog);
  dialog.showModal();
}

/**
 * @param {Session} session @param {App} app
 * @param {ReturnType<typeof import("./link.js").createLink>} link
 * @param {() => void} onSigned
 */
export function createSigning(session, app, link, onSigned) {
  /** @type {any} */
  let readings = null;
  const mine = () => readings?.readings.find((/** @type {any} */ each) => each.reader === app.me.actor);

  async function load() {
    try {
      readings = await link.persist(
        () => app.api.readings(session.digest),
        () => !session.closed,
      );
      if (!session.closed) draw();
    } catch (error) {
      if (!session.closed) app.notices.explainError(error);
    }
  }

  /** @param {any} reading */
  const line = (reading) =>
    element(
      "li",
      {},
      text.reader(
        reading.reader,
        reading.found.map(plain).join(", ") || "—",
        /** @type {any} */ (text.decisions)[reading.decision],
      ),
      reading.comment && element("q", {}, reading.comment),
    );

  function draw() {
    if (!readings) return byId("signed").replaceChildren();
    const own = mine();
    const others = readings.readings.filter((/** @type {any} */ each) => each !== own);
    const same = own && sameWord(own.state, session.state);
    const verdict = /** @type {any} */ (text.verdicts)[readings.agreement.verdict] ?? "";
    return byId("signed").replaceChildren(
      ...(own
        ? [
            element(
              "p",
              { class: "done" },
              `✓ ${text.done(when(own.at))} `,
              !same && element("span", { class: "warn" }, text.again),
            ),
          ]
        : []),
      ...(readings.hidden ? [element("p", { class: "quiet" }, text.hidden(readings.hidden))] : []),
      ...(others.length
        ? [
            element("h3", {}, text.others),
            element("ul", { class: "readers" }, others.map(line)),
            element("p", {}, verdict),
          ]
        : []),
    );
  }

  function openSigning() {
    const choice = (/** @type {"keep" | "revert"} */ value) =>
      element(
        "label",
        { class: "choice" },
        element("input", { type: "radio", name: "decision", value, checked: value === "keep" }),
        element("span", {}, element("strong", {}, text[value][0]), element("small", {}, text[value][1])),
      );
    const comment = /** @type {HTMLTextAreaElement} */ (
      element("textarea", { name: "comment", rows: 3, maxlength: 2000, oninput: () => keep(comment.value) })
    );
    comment.value = session.comment;
    const keep = (/** @type {string} */ value) => {
      session.comment = value;
      session.remember();
    };
    const fields = [
      element("p", {}, summed(session)),
      element(
        "fieldset",
        { hidden: untouched(session.state) },
        element("legend", { class: "visually-hidden" }, text.title),
        choice("keep"),
        choice("revert"),
      ),
      element("label", {}, text.comment, comment),
      ...(mine() ? [element("p", { class: "quiet" }, text.supersedes)] : []),
    ];
    const submit = (/** @type {FormData} */ data) => {
      const reading = {
        state: session.request,
        decision: String(data.get("decision") ?? "keep"),
        comment: String(data.get("comment") ?? "").trim(),
        model: session.model.digest,
      };
      return attempt(async () => {
        await session.ask((digest) => app.api.sign(digest, reading, actKey(session, reading)));
        tick("sign");
        [session.comment, session.act] = ["", null];
        session.remember();
        onSigned();
        await load();
      });
    };
    ask(text.title, fields, text.sign, submit, () => byId("next-study").focus());
  }

  function openSkipping() {
    const reasons = skipping.reasons.map((reason, index) =>
      element(
        "label",
        { class: "choice" },
        element("input", { type: "radio", name: "reason", value: reason, checked: index === 0 }),
        element("span", {}, reason),
      ),
    );
    const fields = [
      element("fieldset", {}, element("legend", {}, skipping.why), ...reasons),
      element("label", {}, skipping.more, element("input", { type: "text", name: "more", maxlength: 200 })),
    ];
    ask(skipping.title, fields, skipping.skip, (data) => {
      const more = String(data.get("more")).trim();
      return attempt(async () => {
        const reason = `${data.get("reason")}${more ? `: ${more}` : ""}`;
        await session.ask((digest) => app.api.skip(digest, reason, actKey(session, reason)));
        session.act = null;
        app.notices.say(skipping.done);
        await next();
      });
    });
  }

  /** @param {() => Promise<void>} act @returns {Promise<boolean>} whether it was done */
  async function attempt(act) {
    try {
      await act();
      return true;
    } catch (error) {
      if (error instanceof ApiError && error.code === "model_changed") await session.refresh();
      app.notices.explainError(error);
      return false;
    }
  }

  async function next() {
    await attempt(async () => {
      const digest = await link.persist(() => nextStudy(app, session.digest));
      if (digest) app.navigate(`#/read/${digest}`);
      else app.notices.say(text.last);
    });
  }

  /** The record of what this reader signed, if that is what is on the screen. @returns {number | null} */
  const record = () => (mine() && sameWord(mine().state, session.state) ? mine().record.number : null);

  return { load, draw, sign: openSigning, skip: openSkipping, next, record };
}
