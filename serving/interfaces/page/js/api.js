// The reading API as functions. Every failure is an ApiError whose message can be shown.

import { strings } from "./strings.js";

export class ApiError extends Error {
  /** @param {string} message @param {string} code @param {number} status */
  constructor(message, code, status) {
    super(message);
    this.code = code;
    this.status = status;
  }

  /** Whether the same request may succeed later, with nothing changed: nobody answered, or who did is too busy. */
  get passing() {
    return [0, 429, 502, 503, 504].includes(this.status);
  }

  /** Whether the server has let a study go, and takes its file again. */
  get forgotten() {
    return ["unknown_study", "upload_again", "image_size_differs"].includes(this.code);
  }
}

/** Where the reader was when their session ended; `main.js` brings them back. */
export const RETURN_TO = "csr:return";

/**
 * @param {string} path
 * @param {RequestInit} options
 * @returns {Promise<Response>}
 */
async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(strings.errors.unreachable, "unreachable", 0);
  }
  if (response.ok) return response;
  if (response.status === 401) {
    sessionStorage.setItem(RETURN_TO, location.search + location.hash);
    location.assign("/sign-in");
  }
  const error = await response.json().then(
    (body) => body.error,
    () => null,
  );
  if (error) throw new ApiError(error.message, error.code, response.status);
  const busy = response.status === 503 || response.status === 429;
  throw new ApiError(busy ? strings.errors.busy : strings.errors.status(response.status), "http", response.status);
}

/** @param {string} path @param {RequestInit} [options] @returns {Promise<any>} */
const json = async (path, options) => (await request(path, options)).json();
/** @param {string} path @param {RequestInit} [options] @returns {Promise<Blob>} */
const blob = async (path, options) => (await request(path, options)).blob();
/** @param {unknown} body @param {{ signal?: AbortSignal, key?: string }} [options] @returns {RequestInit} */
const post = (body, { signal, key } = {}) => ({
  method: "POST",
  headers: { "Content-Type": "application/json", ...(key ? { "Idempotency-Key": key } : {}) },
  body: JSON.stringify(body),
  signal,
});
const part = encodeURIComponent;
/** @param {Record<string, any>} parameters */
const query = (parameters) => {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `?${new URLSearchParams(given.map(([key, value]) => [key, String(value)]))}` : "";
};
/** A new idempotency key. Not `crypto.randomUUID`, which a page by plain http from another machine lacks. */
export const newKey = () =>
  [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
/** @param {string} path */
const v1 = (path) => `/v1/${path}`;

export const alive = () => json("/health/live");
export const me = () => json(v1("me"));
export const models = () => json(v1("models"));
export const samples = () => json(v1("samples"));
/** @param {number} index */
export const sampleUrl = (index) => v1(`samples/${index}.png`);
/** @param {number} index */
export const sampleFile = (index) => blob(sampleUrl(index));

/** @param {{ order?: string, progress?: string, help?: boolean, limit?: number, after?: string }} parameters */
export const worklist = (parameters) => json(v1(`worklist${query(parameters)}`));
/** @param {string} digest */
export const thumbnailUrl = (digest) => v1(`studies/${digest}/thumbnail.png`);
/** @param {string} digest */
export const study = (digest) => json(v1(`studies/${digest}`));
/** @param {string} digest */
export const image = (digest) => blob(v1(`studies/${digest}/image.png`));
/** @param {string} digest @param {object} state @param {{ signal?: AbortSignal, key?: string }} [options] */
export const interact = (digest, state, options) => json(v1(`studies/${digest}/interactions`), post(state, options));
/** @param {string} digest @param {object} box @param {object} size */
export const probe = (digest, box, size) => json(v1(`studies/${digest}/probe`), post({ box, image: size }));
/** @param {string} digest @param {object} state @param {AbortSignal} [signal] */
export const maps = (digest, state, signal) => json(v1(`studies/${digest}/maps`), post(state, { signal }));
/** @param {string} digest @param {object} state */
export const compare = (digest, state) => json(v1(`studies/${digest}/compare`), post(state));

/** @param {string} digest */
export const readings = (digest) => json(v1(`studies/${digest}/readings`));
/** @param {string} digest @param {{ state: object, decision: string, comment: string }} reading @param {string} key */
export const sign = (digest, reading, key) => json(v1(`studies/${digest}/readings`), post(reading, { key }));
/** @param {string} digest @param {string} reason @param {string} key */
export const skip = (digest, reason, key) => json(v1(`studies/${digest}/skips`), post({ reason }, { key }));
/** @param {string} digest */
export const sources = (digest) => json(v1(`studies/${digest}/sources`));
/** @param {string} digest @param {object} document what it is about: an interaction or a reading, and a source */
export const report = (digest, document) => blob(v1(`studies/${digest}/report.dcm`), post(document));
/** @param {string} digest @param {object} document and a node, and the image there that it belongs to */
export const send = (digest, document) => json(v1(`studies/${digest}/send`), post(document));

export const nodes = () => json(v1("nodes"));
/** @param {string} node @param {Record<string, any>} parameters */
export const instances = (node, parameters) => json(v1(`nodes/${part(node)}/instances${query(parameters)}`));
/** @param {string} node @param {object} instance */
export const fetchInstance = (node, instance) => json(v1("studies/fetch"), post({ node, instance }));
/** @param {Blob} file @param {string} name */
export function upload(file, name) {
  const form = new FormData();
  form.append("file", file, name);
  return json(v1("studies"), { method: "POST", body: form });
}

export const atlas = () => json(v1("atlas"));
/** @param {string} concept @param {number} index */
export const prototype = (concept, index) => json(v1(`atlas/${part(concept)}/${index}`));
/** @param {string} concept @param {number} index @param {{ rank?: number, map?: boolean }} parameters */
export const cropUrl = (concept, index, parameters = {}) =>
  v1(`atlas/${part(concept)}/${index}.png${query(parameters)}`);
/** @param {Array<{ concept: string, index: number }>} pruned @param {AbortSignal} [signal] */
export const previewAtlas = (pruned, signal) => json(v1("atlas/preview"), post({ pruned }, { signal }));
export const reviews = () => json(v1("reviews"));
/** @param {object} body @param {string} [key] */
export const review = (body, key) => json(v1("reviews"), post(body, { key }));
/** @param {string} reason */
export const rollback = (reason) => json(v1("models/rollback"), post({ reason }));
