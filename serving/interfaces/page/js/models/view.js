// The models in service: what they are, how good they are, what they say of the same study, what was before, and the way
// back.

import { element } from "../dom.js";
import { strings } from "../strings.js";
import { card, noChallenger } from "./card.js";
import { compare } from "./compare.js";
import { history, rollback } from "./history.js";
import { metrics } from "./metrics.js";

/** @typedef {import("./types.js").ModelsAnswer} ModelsAnswer */

const REFRESH_MS = 15_000; // a roll-out takes a while to arrive
const text = strings.models;

/** @type {import("../types.js").Mount} */
export function mount(root, _parameters, app) {
  /** @type {ModelsAnswer | null} */
  let now = null;
  let gone = false;
  let shown = "";

  const cards = element("div", { class: "sides" });
  const measured = element("section", { class: "panel", "aria-labelledby": "metrics-title" });
  const compared = compare(app);
  const past = element("div");
  const back = rollback(
    app,
    () => now?.models.find(({ role }) => role === "champion"),
    () => void load(),
  );
  root.replaceChildren(
    element("h2", { id: "models-title" }, text.title),
    cards,
    measured,
    element(
      "section",
      { class: "panel", "aria-labelledby": "compare-title" },
      element("h3", { id: "compare-title" }, text.compare.title),
      element("p", { class: "quiet" }, text.compare.how),
      compared.node,
    ),
    element(
      "section",
      { class: "panel", "aria-labelledby": "history-title" },
      element("h3", { id: "history-title" }, text.history.heading),
      past,
      back,
    ),
  );

  async function load() {
    try {
      const answer = await app.api.models();
      if (gone) return;
      const different = shown !== (shown = JSON.stringify([answer.models, answer.refused, answer.history]));
      now = answer;
      app.models = answer.models;
      if (different) draw(answer);
    } catch (error) {
      if (!gone) app.notices.explainError(error);
    }
  }

  /** @param {ModelsAnswer} answer */
  function draw(answer) {
    const challenger = answer.models.some(({ role }) => role === "challenger");
    const refused = answer.refused.champion
      ? [element("p", { class: "help" }, text.refused(answer.refused.champion))]
      : [];
    cards.replaceChildren(
      ...refused,
      ...answer.models.map(card),
      ...(challenger ? [] : [noChallenger(answer.refused.challenger)]),
    );
    measured.replaceChildren(
      element("h3", { id: "metrics-title" }, text.metrics.title),
      element("p", { class: "quiet" }, text.metrics.how),
      ...metrics(answer.models),
    );
    past.replaceChildren(history(answer));
    void compared.load();
  }

  const timer = setInterval(() => document.visibilityState === "visible" && void load(), REFRESH_MS);
  void load();
  return () => {
    gone = true;
    clearInterval(timer);
  };
}
