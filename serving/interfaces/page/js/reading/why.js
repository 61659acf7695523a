// Why a concept: this here looks like that there. A crop of this study beside those of training studies.

import { byId, element, refill } from "../dom.js";
import { plain, when } from "../format.js";
import { strings } from "../strings.js";

const text = strings.reading.why;
const SHARE = 0.25; // of the image's shorter side that the crop of this study shows

/**
 * The picture around a place, as the reader sees it now.
 * @param {HTMLCanvasElement | null} picture of the whole image @param {import("../types.js").Size} size
 * @param {{ x: number, y: number }} peak @param {string} label
 */
function here(picture, size, peak, label) {
  const canvas = /** @type {HTMLCanvasElement} */ (
    element("canvas", { width: "96", height: "96", role: "img", "aria-label": label })
  );
  const context = canvas.getContext("2d");
  if (!picture || !context) return canvas;
  const scale = picture.width / size.width;
  const side = Math.min(picture.width, picture.height) * SHARE;
  const left = Math.min(Math.max(peak.x * scale - side / 2, 0), picture.width - side);
  const top = Math.min(Math.max((peak.y * picture.height) / size.height - side / 2, 0), picture.height - side);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, left, top, side, side, 0, 0, 96, 96);
  return canvas;
}

/**
 * @param {import("../types.js").Concept} concept as it is now
 * @param {HTMLCanvasElement | null} picture @param {import("../types.js").Size} size
 * @param {{ version: string, since: string } | undefined} model
 */
export function drawWhy(concept, picture, size, model) {
  const name = plain(concept.name);
  byId("atlas-title").textContent = text.title(name);
  byId("atlas-note").textContent = concept.exemplars.length
    ? ""
    : concept.answer === "rejected"
      ? text.rejected
      : text.none;
  byId("since").textContent = concept.exemplars.length && model ? text.since(model.version, when(model.since)) : "";
  const items = concept.exemplars.map((each) => {
    const line = (/** @type {string} */ title, /** @type {string} */ shown) => element("span", { title }, shown);
    return element(
      "li",
      { class: "exemplar" },
      element("img", { src: each.crop, alt: text.alt(name, each.index, each.study_id), width: "96", height: "96" }),
      element(
        "strong",
        { title: "Similarity between this prototype and the study" },
        `${text.similarity} ${each.score.toFixed(2)}`,
      ),
      element("span", { class: "source", title: each.study_id }, each.study_id),
      line("What the source says that it shows", text.labelled(name)),
      line("What is pruned or kept in a review", `prototype ${each.index}`),
      line(
        "Share of training studies with this concept that this prototype is closest to, of those in use",
        `usage ${(each.usage * 100).toFixed(0)} %`,
      ),
      line("Share of the classifier's decisions that rests on it", `reliance ${(each.reliance * 100).toFixed(1)} %`),
    );
  });
  const this_ =
    concept.peak && concept.exemplars.length
      ? [
          element(
            "li",
            { class: "here" },
            here(picture, size, concept.peak, text.hereAlt(name)),
            element("strong", {}, text.here),
          ),
        ]
      : [];
  refill(byId("exemplars"), ...this_, ...items);
}
