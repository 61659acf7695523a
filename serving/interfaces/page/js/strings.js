// Every text of the page, in English. A translation is another file with the same names.
// `reading` is the reading view's, `worklist`, `atlas` and `models` are those of the other views.

export const strings = {
  title: "CSR reading room",
  views: { worklist: "Worklist", read: "Reading", atlas: "Atlas", models: "Models" },
  me: (/** @type {string} */ actor, /** @type {string} */ role) => `${actor} · ${role}`,
  keys: {
    title: "Keys",
    close: "Close",
    everywhere: "Everywhere",
    show: "Show these keys",
    worklist: "Go to the worklist",
  },
  errors: {
    unreachable: "The server does not answer. Is it still running?",
    busy: "The server is busy; try again in a moment.",
    status: (/** @type {number} */ status) => `The server answered ${status}.`,
    page: "The page failed; reload it. What you did is kept.",
    offline: "The server does not answer. What you did is kept in this browser, and goes on by itself when the server is back.",
    retry: "Try now",
  },
  misfit: (/** @type {boolean} */ abstains) =>
    `This image is unlike those that the model was trained on. ${abstains ? "The model abstains." : "Do not rely on what the model says."}`,
  archive: {
    looking: (/** @type {string} */ node) => `Looking for the study in ${node}…`,
    none: (/** @type {string} */ node) => `${node} has no image of this study.`,
  },
  reading: {},
  worklist: {},
  atlas: {},
  models: {},
};
