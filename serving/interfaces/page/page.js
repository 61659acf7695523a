// The reading room: one study, one reader, one state. The state (boxes and rejected concepts) goes whole with every
// request, so undo is a matter of this page alone and the server may forget the study at any time: its file is kept
// here and is sent again when that happens.

import * as api from "./api.js";
import { drawClasses, drawConcepts, drawExemplars, element, plain } from "./results.js";
import { Stage } from "./stage.js";

const EMPTY = { boxes: [], rejected: [] };
const byId = (id) => document.getElementById(id);

let study = null; // { file, name, digest, image, prediction, order }
let state = EMPTY;
let history = []; // the states before it
let after = null; // the prediction under `confirmed.state`
let confirmed = { state: EMPTY, history: [] };
let chosen = { concept: null, class: null };
let turn = 0; // an answer to an earlier turn is stale and is dropped
let opening = 0; // the same for uploads
let busy = 0;

const kind = () => document.querySelector('input[name="kind"]:checked').value;
const stage = new Stage(byId("stage"), byId("boxes"), (box) => apply({ ...state, boxes: [...state.boxes, { ...box, kind: kind() }] }));

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
    chosen = { concept: study.order[0], class: null };
    showError("");
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
  [state, history] = [next, past];
  const mine = ++turn;
  drawState();
  const answered = await attempt(async () => {
    const answer = await ask((digest) => api.interact(digest, request()));
    if (mine !== turn) return;
    after = answer.after;
    confirmed = { state: next, history: past };
    showError("");
    byId("summary").textContent = touched() ? plain(answer.changes.summary) : "";
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
const touched = () => state.boxes.length > 0 || state.rejected.length > 0;
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

function drawState() {
  const finding = after.concepts.find((each) => each.name === chosen.concept);
  stage.draw(state.boxes, finding?.peak, kind);
  byId("undo").disabled = history.length === 0;
  byId("reset").disabled = !touched();
  byId("add-box").disabled = false;
  const focused = document.activeElement?.dataset?.box;
  byId("box-list").replaceChildren(...state.boxes.map(boxItem));
  if (focused !== undefined) document.querySelector(`[data-box="${focused}"]`)?.focus();
}

function boxItem(box, index) {
  const size = `${Math.round(box.x_max - box.x_min)}×${Math.round(box.y_max - box.y_min)} px`;
  const text = `${box.kind === "positive" ? "+" : "−"}${index + 1} ${box.kind === "positive" ? "Look here" : "Ignore"}`;
  const remove = () => apply({ ...state, boxes: state.boxes.filter((_, other) => other !== index) });
  const move = { type: "button", class: `box ${box.kind}`, "data-box": String(index), onkeydown: (event) => nudge(event, index, remove) };
  const label = `Remove box ${index + 1}`;
  return element("li", {}, element("button", move, text, element("small", {}, size)), element("button", { type: "button", class: "remove", "aria-label": label, onclick: remove }, "×"));
}

// Arrow keys move a box by a fiftieth of the image, with Shift they resize it.
function nudge(event, index, remove) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key === "Delete" || event.key === "Backspace") {
    event.preventDefault();
    return remove();
  }
  if (!steps[event.key]) return undefined;
  event.preventDefault();
  const { width, height } = study.image;
  const box = { ...state.boxes[index] };
  const [dx, dy] = [(steps[event.key][0] * width) / 50, (steps[event.key][1] * height) / 50];
  box.x_max = Math.min(box.x_max + dx, width);
  box.y_max = Math.min(box.y_max + dy, height);
  if (!event.shiftKey) {
    box.x_min = Math.max(box.x_min + dx, 0);
    box.y_min = Math.max(box.y_min + dy, 0);
  }
  if (box.x_max - box.x_min < width / 50 || box.y_max - box.y_min < height / 50) return undefined;
  return apply({ ...state, boxes: state.boxes.map((other, place) => (place === index ? box : other)) });
}

function render() {
  const forClass = chosen.class ?? after.top;
  const { prediction: before, order } = study;
  const focused = document.activeElement?.dataset ?? {};
  drawState();
  drawClasses(before, after, forClass, touched(), (name) => {
    chosen = { ...chosen, class: name };
    render();
  });
  drawConcepts({ before, after, order, chosen: chosen.concept, forClass, onChoose: chooseConcept, onReject: toggle });
  drawExemplars(after.concepts.find((each) => each.name === chosen.concept));
  for (const key of ["class", "concept", "reject"]) {
    // What was redrawn under the keyboard keeps the keyboard.
    if (focused[key]) document.querySelector(`[data-${key}="${CSS.escape(focused[key])}"]`)?.focus();
  }
}

function chooseConcept(name) {
  chosen = { ...chosen, concept: name };
  render();
  return attempt(() => drawMap(turn));
}

function toggle(name) {
  const rejected = state.rejected.includes(name) ? state.rejected.filter((each) => each !== name) : [...state.rejected, name];
  return apply({ ...state, rejected });
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
  apply({ ...state, boxes: [...state.boxes, box] });
  document.querySelector(`[data-box="${state.boxes.length - 1}"]`)?.focus();
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
