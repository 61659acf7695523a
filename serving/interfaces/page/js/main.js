// The start of the page and its router: the address after # says which view is shown.

import * as api from "./api.js";
import { openFromArchive } from "./archive.js";
import { byId, element } from "./dom.js";
import { startKeys } from "./keys.js";
import * as notices from "./notices.js";
import { createStore } from "./store.js";
import { strings } from "./strings.js";
import { mount as mountAtlas } from "./atlas/view.js";
import { mount as mountModels } from "./models/view.js";
import { mount as mountReading } from "./reading/view.js";
import { mount as mountWorklist } from "./worklist/view.js";

/** @typedef {import("./types.js").App} App */

/** @type {Record<string, import("./types.js").Mount>} */
const VIEWS = { worklist: mountWorklist, read: mountReading, atlas: mountAtlas, models: mountModels };
/** @type {Record<string, string>} */
const TITLES = strings.views;
const HOME = "#/worklist";

/** @type {Map<string, import("./types.js").Opened>} */
const studies = new Map();
const store = createStore({ study: null });
let unmount = () => {};
let shown = ""; // the address of the view that is shown

/** @type {App} */
const app = {
  api,
  store,
  notices,
  navigate: (hash) => location.assign(hash),
  me: { actor: "", role: "reader" },
  models: [],
  remember(answer, about = {}) {
    const known = studies.get(answer.digest) ?? { file: null, name: "", sample: null, origin: null };
    studies.set(answer.digest, { ...known, ...about, answer });
    return `#/read/${answer.digest}`;
  },
  opened: (digest) => studies.get(digest),
};

/** @param {string} current */
function drawViews(current) {
  const study = store.get("study");
  const links = Object.entries(TITLES).map(([name, title]) => {
    const href = name === "read" && study ? `#/read/${study}` : `#/${name}`;
    return element("a", { href, "aria-current": name === current ? "page" : null }, title);
  });
  byId("views").replaceChildren(...links);
  document.title = `${TITLES[current]} · ${strings.title}`;
}

function route() {
  shown = location.hash;
  const [address, query = ""] = (location.hash || HOME).slice(2).split("?");
  const [name, ...path] = address.split("/").map(decodeURIComponent);
  if (!VIEWS[name]) return app.navigate(HOME);
  unmount();
  notices.showMisfit(null);
  const view = byId("view");
  view.replaceChildren();
  view.className = `view ${name}`;
  document.body.dataset.view = name;
  unmount = VIEWS[name](view, { path, query: new URLSearchParams(query) }, app);
  drawViews(name);
}

async function start() {
  notices.startNotices();
  startKeys();
  store.subscribe("study", () => drawViews(location.hash.slice(2).split("/")[0] || "worklist"));
  byId("skip-link").addEventListener("click", (/** @type {Event} */ event) => {
    event.preventDefault(); // the address after # is the router's
    byId("view").focus();
  });
  try {
    const [me, { models }] = await Promise.all([api.me(), api.models()]);
    Object.assign(app, { me, models });
  } catch (error) {
    return notices.explainError(error);
  }
  byId("me").textContent = strings.me(app.me.actor, app.me.role);
  const back = sessionStorage.getItem(api.RETURN_TO);
  sessionStorage.removeItem(api.RETURN_TO);
  if (back && !location.hash && !location.search) history.replaceState(null, "", `/${back}`);
  const opened = await openFromArchive(new URLSearchParams(location.search), app);
  if (opened) history.replaceState(null, "", `/${opened}`);
  window.addEventListener("hashchange", () => {
    if (location.hash === shown) return; // it changed just before it was first shown
    notices.showError("");
    route();
  });
  route();
}

start();
