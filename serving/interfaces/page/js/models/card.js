// A model's card: what it is, what it was trained on, what it is for and what it is not.

import { element } from "../dom.js";
import { brief, nonbreaking, percent, plain, when } from "../format.js";
import { strings } from "../strings.js";

/** @typedef {import("./types.js").Served} Served */

const text = strings.models.card;

/** @param {Served} model */
export function card({ role, version, digest, since, manifest, prototypes, live, mb }) {
  const { alpha } = manifest;
  const facts = [
    [text.version, version],
    [text.since, since ? when(since) : "–"],
    [text.digest, element("code", { title: digest }, brief(digest))],
    [text.task, /** @type {Record<string, string>} */ (text.tasks)[manifest.task] ?? manifest.task],
    [text.data, `${manifest.data} (${brief(manifest.data_digest)})`],
    [text.network, text.backbone(manifest.backbone, manifest.preset)],
    [text.input, text.pixels(manifest.channels, manifest.side)],
    [text.maps, text.cells(manifest.height, manifest.width)],
    [text.prototypes, text.inUse(live, prototypes)],
    [text.size, text.megabytes(mb)],
    [text.alpha, typeof alpha === "number" ? alpha.toFixed(2) : text.ownAlpha],
    [text.asks, text.below(nonbreaking(percent(manifest.ask_margin)))],
    [
      text.abstains,
      manifest.abstain_below === null ? text.never : text.confidenceBelow(nonbreaking(percent(manifest.abstain_below))),
    ],
    [text.code, element("code", { title: manifest.code_revision }, manifest.code_revision.slice(0, 12))],
  ];
  const id = `model-${role}`;
  return element(
    "article",
    { class: `panel card ${role}`, "aria-labelledby": id },
    element("h3", { id }, strings.models.roles[role], " ", element("span", { class: "quiet" }, text.named(version))),
    element("dl", {}, facts.map(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]).flat()),
    element("h4", {}, text.classes),
    element("p", {}, manifest.classes.map(plain).join(", ")),
    element("h4", {}, text.concepts),
    element("p", {}, manifest.concepts.map(plain).join(", ")),
    element("h4", {}, text.use),
    element("p", {}, text.useText(manifest.data)),
  );
}

/** Where there is no challenger: what one is and how there comes to be one. @param {string | undefined} refused */
export function noChallenger(refused) {
  return element(
    "article",
    { class: "panel card absent", "aria-labelledby": "model-challenger" },
    element("h3", { id: "model-challenger" }, strings.models.roles.challenger),
    element("p", {}, refused ? text.refused(refused) : text.noChallenger),
    !refused && element("p", { class: "quiet" }, text.howChallenger),
  );
}
