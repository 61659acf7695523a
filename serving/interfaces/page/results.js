// Draws a prediction, and what an interaction changed in it. Text from the server only ever becomes text nodes.

const byId = (id) => document.getElementById(id);
export const percent = (value) => `${Math.round(value * 100)} %`;
const signed = (value, digits = Math.abs(value) < 10 ? 2 : 1) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
export const plain = (name) => name.replaceAll("_", " ");

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (typeof value === "boolean") node.toggleAttribute(key, value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

// Where a study can have several classes each has a threshold. What is found from 30 % on never reads "30 %" while it is not.
const chance = ({ probability, threshold }) => (threshold !== null && probability < threshold && percent(probability) === percent(threshold) ? `< ${percent(threshold)}` : percent(probability));

// A bar from 0 to 1 with an optional mark where the value was before, and one at the threshold that decides, if any does.
function bar(value, before, threshold = null) {
  const fill = element("span", { class: "fill" });
  fill.style.width = `${value * 100}%`;
  const node = element("span", { class: threshold === null ? "bar" : "bar decides", "aria-hidden": "true" }, fill);
  if (threshold !== null) node.style.setProperty("--threshold", `${Math.round(threshold * 100)}%`);
  if (before !== undefined && Math.abs(before - value) > 0.005) {
    const mark = element("span", { class: "mark" });
    mark.style.left = `${before * 100}%`;
    node.append(mark);
  }
  return node;
}

// A bar to the right for and to the left against, from the middle.
function balance(value, limit) {
  const fill = element("span", { class: value < 0 ? "fill against" : "fill for" });
  const share = Math.min(Math.abs(value) / limit, 1) * 50;
  fill.style.width = `${share}%`;
  fill.style.left = `${value < 0 ? 50 - share : 50}%`;
  return element("span", { class: "bar balance", "aria-hidden": "true" }, fill);
}

function change(delta, text) {
  return element("span", { class: `delta ${delta < 0 ? "down" : "up"}` }, text);
}

// What does not fit is said above everything else, before any number.
export function drawMisfit({ reasons, action }) {
  const follows = action === "abstain" ? "The model abstains." : "Do not rely on what the model says.";
  byId("misfit-title").textContent = reasons.length ? `This image is unlike those that the model was trained on. ${follows}` : "";
  byId("misfit-reasons").replaceChildren(...reasons.map(({ code, message }) => element("li", { "data-reason": code }, message)));
  byId("misfit").hidden = reasons.length === 0;
}

// Where a study can have several classes each is decided on its own, so the notes name the one it is least sure of.
function drawNotes(prediction) {
  const several = prediction.task === "multilabel";
  // how far a probability is on its way from the threshold to 0 or to 1
  const doubt = ({ probability: p, threshold: t }) => (p < t ? (t - p) / t : (p - t) / (1 - t));
  const least = prediction.classes.reduce((one, other) => (doubt(other) < doubt(one) ? other : one));
  const doubtful = `${plain(least.name)} (${chance(least)})`;
  const misfit = prediction.fits.action === "abstain";
  byId("abstains").textContent = misfit
    ? "The model abstains: the image is unlike those that it was trained on. What follows is what it would have said."
    : several
    ? `The model abstains: it is not sure enough of every class, and least of ${doubtful}. What follows is what it would have said.`
    : "The model abstains: it is not sure enough of any class. What follows is what it would have said.";
  byId("help").textContent = several
    ? `The model asks for a second look: ${doubtful} is close to the ${percent(least.threshold)} from which it is found.`
    : "The model asks for a second look: its two likeliest classes are close.";
  byId("found").textContent = prediction.found.length ? `Found: ${prediction.found.map(plain).join(", ")}` : "Nothing found";
  byId("abstains").hidden = !prediction.abstains;
  byId("help").hidden = !prediction.asks_for_help;
  byId("found").hidden = !several;
}

export function drawClasses(before, after, chosen, touched, onChoose) {
  drawNotes(after);
  const several = after.task === "multilabel";
  byId("classes").replaceChildren(
    ...after.classes.map((each, index) => {
      const was = before.classes[index].probability;
      const delta = Math.round(each.probability * 100) - Math.round(was * 100);
      const number = element("span", { class: "number" }, chance(each));
      const found = after.found.includes(each.name);
      const moved = touched && delta !== 0 ? [change(delta, signed(delta, 0))] : [];
      const attributes = {
        type: "button",
        class: found ? "class found" : "class",
        "aria-pressed": String(each.name === chosen),
        "data-class": each.name,
        onclick: () => onChoose(each.name),
      };
      const tick = several && found ? [element("span", { class: "tick", role: "img", "aria-label": "found:" }, "✓"), " "] : [];
      const name = element("span", { class: "name" }, ...tick, plain(each.name));
      return element("button", attributes, name, bar(each.probability, touched ? was : undefined, each.threshold), number, element("span", { class: "moved" }, ...moved));
    }),
  );
}

// Three states of a concept: confirmed, not asked, rejected.
function answers({ name, answer }, onAnswer) {
  const states = [
    ["confirmed", "✓", `Confirm ${plain(name)}: it is there`],
    ["none", "·", `Say nothing of ${plain(name)}`],
    ["rejected", "✕", `Reject ${plain(name)}: it is not there`],
  ];
  const choices = states.map(([value, mark, label]) => {
    const input = { type: "radio", name: `answer ${name}`, value, checked: value === answer, "aria-label": label, "data-answer": name, onchange: () => onAnswer(name, value) };
    return element("label", { title: label }, element("input", input), element("span", { "aria-hidden": "true" }, mark));
  });
  return element("div", { class: "segmented answers", role: "radiogroup", "aria-label": `What you say of ${plain(name)}` }, ...choices);
}

export function drawConcepts({ before, after, order, chosen, forClass, onChoose, onAnswer }) {
  const find = (prediction, name) => prediction.concepts.find((each) => each.name === name);
  const all = [...before.concepts, ...after.concepts].map((each) => Math.abs(each.contributions[forClass]));
  const limit = Math.max(...all, 1e-6);
  byId("for-class").textContent = `Speaks for ${plain(forClass)}`;
  byId("concepts").replaceChildren(
    ...order.map((name) => {
      const now = find(after, name);
      const value = now.contributions[forClass];
      const delta = value - find(before, name).contributions[forClass];
      const choose = element(
        "button",
        { type: "button", class: "concept", "aria-pressed": String(name === chosen), "data-concept": name, onclick: () => onChoose(name) },
        plain(name),
      );
      const present = element("td", { class: "present" }, bar(now.probability, find(before, name).probability), element("span", { class: "number" }, percent(now.probability)));
      const moved = Math.abs(delta) >= 0.005 ? [change(delta, signed(delta))] : [];
      const speaks = element("td", { class: "speaks" }, balance(value, limit), element("span", { class: "number" }, signed(value)), element("span", { class: "moved" }, ...moved));
      const classes = [name === chosen && "chosen", now.answer].filter(Boolean).join(" ");
      return element("tr", { class: classes }, element("th", { scope: "row" }, choose), present, speaks, element("td", {}, answers(now, onAnswer)));
    }),
  );
}

export function drawExemplars(finding) {
  byId("atlas-title").textContent = `Why “${plain(finding.name)}”: the closest exemplars`;
  byId("atlas-note").textContent = finding.exemplars.length
    ? ""
    : finding.answer === "rejected"
      ? "Rejected: its evidence is taken away, so no exemplar speaks for it."
      : "No exemplar of this concept is in use.";
  byId("exemplars").replaceChildren(
    ...finding.exemplars.map((each) => {
      const alt = `Exemplar of ${plain(finding.name)}: prototype ${each.index} as training study ${each.study_id} shows it`;
      return element(
        "li",
        {},
        element("img", { src: each.crop, alt, width: "96", height: "96" }),
        element("strong", { title: "Similarity between this prototype and the study" }, `similarity ${each.score.toFixed(2)}`),
        element("span", { title: "Training study, shown where it resembles the prototype" }, each.study_id),
        element("span", { title: "What is pruned or kept in a review" }, `prototype ${each.index}`),
        element("span", { title: "Share of training studies with this concept that this prototype is closest to, of those in use" }, `usage ${(each.usage * 100).toFixed(0)} %`),
        element("span", { title: "Share of the classifier's decisions that rests on it" }, `reliance ${(each.reliance * 100).toFixed(1)} %`),
      );
    }),
  );
}
