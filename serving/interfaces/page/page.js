// The reading room: one study, one reader, one state. The state (`state.js`) goes whole with every request, so undo is a
// matter of this page alone and the server may forget the study at any time: its file is kept here and is sent again
// when that happens.

import * as api from "./api.js";
import { askAgain, askName, drawQuestion, hideAsk } from "./questions.js";
import { drawClasses, drawConcepts, drawExemplars, drawMisfit, element, plain } from "./results.js";
import { Stage } from "./stage.js";
import { EMPTY, nudged, touched, withAnswer, withBox, withBoxAt, withoutBox } from "./state.js";

const NAMES = { focus: "Focus", ignore: "Ignore", finding: "Finding" };
const SIGNS = { focus: "+", ignore: "−", finding: "" };
const byId = (id) => document.getElementById(id);

let study = null; // { file, name, digest, image, prediction, order }
let state = EMPTY;
let history = []; // the states before it
let after = null; // the prediction under `confirmed.state`
let confirmed = { state: EMPTY, history: [] };
let doubts = []; // questions back about `confirmed.state`'s boxes
let kept = new Set(); // doubted boxes whose name the reader insists on
let skipped = new Set(); // concepts that the reader does not know about
let pending = null; // a finding box without a name yet: { box, ranked, all }
let modelAlpha = null;
let chosen = { concept: null, class: null };
let turn = 0; // an answer to an earlier turn is stale and is dropped
let opening = 0; // the same for uploads
let busy = 0;

const kind = () => document.querySelector('input[name="kind"]:checked').value;
const stage = new Stage(byId("stage"), byId("boxes"), (box) => draw(box));

function showError(message) {
  byId("error-text").textContent = message;
  byId("error").hidden = !message;
}

// Runs one action of the reader and shows what went wrong, if anything did.
async function attempt(action) {
  busy += 1;
  byId("results").setAttribute("aria-busy", "true");
  try {
    await action();
    return true;
  } catch (error) {
    if (!(error instanceof api.ApiError)) console.error(error);
    showError(error instanceof api.ApiError ? error.message : "The page failed; reload it.");
    return false;
  } finally {
    busy -= 1;
    byId("results").setAttribute("aria-busy", String(busy > 0));
  }
}

// Asks about the study; a server that has let it go gets the file again, once.
async function ask(question) {
  try {
    return await question(study.digest);
  } catch (error) {
    if (!["unknown_study", "upload_again", "image_size_differs"].includes(error.code)) throw error;
    const { digest } = await api.upload(study.file, study.name);
    return question(digest);
  }
}

function open(file, name, sample = null) {
  const newest = ++opening;
  return attempt(async () => {
    const answer = await api.upload(file, name);
    if (newest !== opening) return;
    const mine = ++turn;
    study = { file, name, ...answer };
    const { top, concepts } = study.prediction;
    const weight = (each) => -Math.abs(each.contributions[top]);
    study.order = concepts.toSorted((one, other) => weight(one) - weight(other)).map((each) => each.name);
    [state, history, after] = [EMPTY, [], study.prediction];
    confirmed = { state, history };
    [doubts, kept, skipped, pending] = [[], new Set(), new Set(), null];
    chosen = { concept: study.order[0], class: null };
    showError("");
    drawMisfit(after.fits);
    byId("hint").hidden = true;
    byId("result-body").hidden = false;
    byId("result-empty").hidden = true;
    byId("study-name").textContent = `${name} · ${study.image.width}×${study.image.height}`;
    byId("summary").textContent = "";
    byId("timing").textContent = timing(answer.timings_ms);
    for (const id of ["image", "overlay"]) byId(id).removeAttribute("src"); // never one study's picture under another's name
    stage.show(study.image);
    showSample(sample);
    render();
    await Promise.all([setPicture("image", ask(api.image), () => newest === opening), drawMap(mine)]);
  });
}

const apply = (next) => become(next, [...history, state]);

// Makes a state current and asks what it changes. If that fails the page returns to the last state that was
// answered: boxes and prediction on the screen always belong together.
async function become(next, past) {
  [state, history, pending] = [next, past, null];
  const mine = ++turn;
  drawState();
  const answered = await attempt(async () => {
    const answer = await ask((digest) => api.interact(digest, request()));
    if (mine !== turn) return;
    [after, doubts] = [answer.after, answer.doubts];
    if (next.alpha === null) modelAlpha = answer.alpha;
    confirmed = { state: next, history: past };
    showError("");
    byId("summary").textContent = touched(state) ? plain(answer.changes.summary) : "";
    byId("timing").textContent = timing(answer.timings_ms);
    render();
  });
  if (mine !== turn) return;
  if (!answered) {
    ({ state, history } = confirmed);
    render();
  }
  await attempt(() => drawMap(mine));
}

const request = () => ({ ...state, image: study.image });
const timing = (steps) => Object.entries(steps).map(([step, ms]) => `${step} ${ms.toFixed(1)} ms`).join(" · ");

async function drawMap(mine) {
  byId("map-name").textContent = `Similarity to “${plain(chosen.concept)}”`;
  byId("map-limit").textContent = study.prediction.map_limit.toFixed(2);
  const picture = ask((digest) => api.overlay(digest, chosen.concept, request()));
  const concept = chosen.concept;
  await setPicture("overlay", picture, () => mine === turn && concept === chosen.concept);
}

async function setPicture(id, promise, wanted) {
  const url = URL.createObjectURL(await promise);
  const image = byId(id);
  if (!wanted()) return URL.revokeObjectURL(url);
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.src = url;
}

const keyOf = (box) => JSON.stringify(box);
const openDoubts = () => doubts.filter((each) => state === confirmed.state && !kept.has(keyOf(state.boxes[each.box])));
const openQuestions = () => after.questions.filter((each) => !skipped.has(each.concept));

function drawState() {
  const finding = after.concepts.find((each) => each.name === chosen.concept);
  const doubted = new Set(openDoubts().map((each) => each.box));
  const shown = state.boxes.map((box, index) => {
    const name = box.concept ? ` ${plain(box.concept)}` : "";
    return { ...box, tag: `${SIGNS[box.kind]}${index + 1}${name}${doubted.has(index) ? " ?" : ""}` };
  });
  if (pending) shown.push({ ...pending.box, pending: true, tag: "?" });
  stage.draw(shown, finding?.peak, pending ? null : openQuestions()[0]?.place, kind);
  byId("undo").disabled = history.length === 0;
  byId("reset").disabled = !touched(state) && state.alpha === null;
  byId("add-box").disabled = false;
  drawAlpha();
  const focused = document.activeElement?.dataset?.box;
  byId("box-list").replaceChildren(...state.boxes.map(boxItem), ...(pending ? [pendingItem()] : []));
  if (focused !== undefined) document.querySelector(`[data-box="${focused}"]`)?.focus();
  drawAsk();
}

function drawAlpha() {
  const alpha = state.alpha ?? modelAlpha;
  byId("alpha").disabled = false;
  byId("alpha").value = typeof alpha === "number" ? alpha : 0.5;
  const text = typeof alpha === "number" ? `α ${alpha.toFixed(2)}` : "each concept’s own α";
  byId("alpha-value").textContent = state.alpha === null ? `${text} (the model’s)` : text;
}

// One question at a box at a time: what a new one shows, else the first doubt.
function drawAsk() {
  const [doubt] = openDoubts();
  const focused = document.activeElement?.dataset?.chip;
  if (pending) {
    askName(pending, study.image, { onName: nameBox, onMore: () => showAll(), onDiscard: discard });
  } else if (doubt) {
    const box = state.boxes[doubt.box];
    const onKeep = () => {
      kept.add(keyOf(box));
      drawState();
    };
    askAgain(doubt, box, study.image, { onName: (name) => apply(withBoxAt(state, doubt.box, { ...box, concept: name })), onKeep });
  } else hideAsk();
  if (focused !== undefined) document.querySelector(`[data-chip="${CSS.escape(focused)}"]`)?.focus();
}

function draw(box) {
  if (kind() !== "finding") return apply(withBox(state, { ...box, kind: kind() }));
  return propose({ ...box, kind: "finding" }, true);
}

// A finding box that has no name yet: the server ranks what it may be about, and the reader says what it is.
async function propose(box, moveFocus) {
  const mine = { box, ranked: null, all: false };
  pending = mine;
  drawState();
  const { x_min, y_min, x_max, y_max } = box;
  await attempt(async () => {
    try {
      const answer = await ask((digest) => api.probe(digest, { x_min, y_min, x_max, y_max }, study.image));
      mine.ranked = answer.concepts.map(({ name, probability }) => ({ name, probability }));
    } catch (error) {
      if (error.code !== "cannot_name") throw error;
      mine.ranked = study.prediction.concepts.map(({ name }) => ({ name, probability: null }));
      mine.all = true;
    }
    showError("");
  });
  if (pending !== mine) return;
  if (mine.ranked === null) pending = null; // it failed, and the page says why
  drawState();
  if (moveFocus) document.querySelector("[data-chip]")?.focus();
}

function nameBox(concept) {
  chosen = { ...chosen, concept };
  return apply(withBox(state, { ...pending.box, concept }));
}

function showAll() {
  pending.all = true;
  drawState();
  document.querySelector("[data-chip]")?.focus();
}

function discard() {
  pending = null;
  drawState();
  byId("add-box").focus();
}

function boxItem(box, index) {
  const name = box.concept ? `: ${plain(box.concept)}` : "";
  return listed(box, `${SIGNS[box.kind]}${index + 1} ${NAMES[box.kind]}${name}`, String(index), {
    remove: () => apply(withoutBox(state, index)),
    move: (next) => apply(withBoxAt(state, index, next)),
    label: `Remove box ${index + 1}`,
  });
}

const pendingItem = () =>
  listed(pending.box, "? What is it?", "pending", { remove: discard, move: (next) => propose(next, false), label: "Discard the box without a name" });

// Arrow keys move a box, with Shift they resize it, Delete removes it.
function listed(box, text, key, { remove, move, label }) {
  const size = `${Math.round(box.x_max - box.x_min)}×${Math.round(box.y_max - box.y_min)} px`;
  const onkeydown = (event) => {
    const gone = event.key === "Delete" || event.key === "Backspace";
    const next = nudged(box, event, study.image);
    if (!gone && !event.key.startsWith("Arrow")) return;
    event.preventDefault();
    if (gone) remove();
    else if (next) move(next);
  };
  const chosenBox = element("button", { type: "button", class: `box ${box.kind}`, "data-box": key, onkeydown }, text, element("small", {}, size));
  return element("li", {}, chosenBox, element("button", { type: "button", class: "remove", "aria-label": label, onclick: remove }, "×"));
}

function render() {
  const forClass = chosen.class ?? after.top;
  const { prediction: before, order } = study;
  const focused = document.activeElement?.dataset ?? {};
  const asked = document.activeElement?.closest("#question-answers") ? document.activeElement.id : "";
  drawState();
  drawClasses(before, after, forClass, touched(state), (name) => {
    chosen = { ...chosen, class: name };
    render();
  });
  drawConcepts({ before, after, order, chosen: chosen.concept, forClass, onChoose: chooseConcept, onAnswer: answer });
  drawQuestion(openQuestions()[0], skipped.size > 0, { onAnswer: ({ concept }, said) => answer(concept, said), onSkip: skip, onLook: ({ concept }) => chooseConcept(concept) });
  drawExemplars(after.concepts.find((each) => each.name === chosen.concept));
  for (const key of ["class", "concept", "answer"]) {
    // What was redrawn under the keyboard keeps the keyboard.
    const checked = key === "answer" ? ":checked" : "";
    if (focused[key]) document.querySelector(`[data-${key}="${CSS.escape(focused[key])}"]${checked}`)?.focus();
  }
  if (asked) (byId(asked) ?? byId("question-yes"))?.focus();
}

function chooseConcept(name) {
  chosen = { ...chosen, concept: name };
  render();
  return attempt(() => drawMap(turn));
}

const answer = (name, said) => apply(withAnswer(state, name, said));

function skip({ concept }) {
  skipped.add(concept);
  render();
}

function showSample(sample) {
  for (const each of document.querySelectorAll("[data-sample]")) {
    each.toggleAttribute("aria-current", each.dataset.sample === String(sample?.index));
  }
  byId("reference").hidden = !sample;
  byId("reference").open = false;
  if (!sample) return;
  const concepts = sample.concepts.map(plain).join(", ") || "none";
  byId("reference-text").textContent = `${sample.study_id}. Diagnosis: ${plain(sample.diagnosis)}. Concepts: ${concepts}.`;
}

function addBox() {
  const { width, height } = study.image;
  const box = { x_min: width * 0.375, y_min: height * 0.375, x_max: width * 0.625, y_max: height * 0.625, kind: kind() };
  if (box.kind === "finding") propose(box, false);
  else apply(withBox(state, box));
  document.querySelector("#box-list li:last-child .box")?.focus();
}

function wire() {
  byId("file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) open(file, file.name);
    event.target.value = ""; // the same file may be opened again
  });
  const well = byId("well");
  well.addEventListener("dragover", (event) => event.preventDefault());
  well.addEventListener("drop", (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) open(file, file.name);
  });
  byId("undo").addEventListener("click", () => become(history.at(-1), history.slice(0, -1)));
  byId("reset").addEventListener("click", () => apply(EMPTY));
  byId("add-box").addEventListener("click", addBox);
  byId("alpha").addEventListener("change", (event) => apply({ ...state, alpha: Number(event.target.value) }));
  window.addEventListener("keydown", (event) => event.key === "Escape" && pending && discard());
  byId("error-close").addEventListener("click", () => showError(""));
  const opacity = byId("opacity");
  const fade = () => byId("overlay").style.setProperty("opacity", opacity.value / 100);
  opacity.addEventListener("input", fade);
  fade();
  window.addEventListener("resize", () => study && drawState());
}

async function start() {
  wire();
  await attempt(async () => {
    const [{ models: [{ manifest, digest }] }, samples] = await Promise.all([api.models(), api.samples()]);
    modelAlpha = manifest.alpha;
    byId("model").textContent = `${manifest.data} · ${manifest.backbone} · ${manifest.preset} · bundle ${digest.slice(0, 8)}`;
    byId("samples").replaceChildren(
      ...samples.map((sample) => {
        const image = element("img", { src: api.sampleUrl(sample.index), alt: "", width: "72", height: "72", loading: "lazy" });
        const read = () => attempt(async () => open(await api.sampleFile(sample.index), `sample ${sample.index + 1}`, sample));
        return element("li", {}, element("button", { type: "button", "data-sample": String(sample.index), onclick: read }, image, element("span", {}, `${sample.index + 1}`)));
      }),
    );
  });
}

start();
