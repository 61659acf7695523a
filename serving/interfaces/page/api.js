// The reading API as functions. Every failure is an ApiError whose message can be shown.

export class ApiError extends Error {
  constructor(message, code, status) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new ApiError("The server does not answer. Is it still running?", "unreachable", 0);
  }
  if (response.ok) return response;
  if (response.status === 401) location.assign("/sign-in");
  const error = await response.json().then((body) => body.error, () => null);
  if (error) throw new ApiError(error.message, error.code, response.status);
  const busy = response.status === 503 || response.status === 429;
  throw new ApiError(busy ? "The server is busy; try again in a moment." : `The server answered ${response.status}.`, "http", response.status);
}

const json = async (path, options) => (await request(path, options)).json();
const blob = async (path, options) => (await request(path, options)).blob();
const post = (state) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(state) });
const part = encodeURIComponent;

export const models = () => json("/v1/models");
export const samples = () => json("/v1/samples");
export const sampleUrl = (index) => `/v1/samples/${index}.png`;
export const sampleFile = (index) => blob(sampleUrl(index));
export const image = (digest) => blob(`/v1/studies/${digest}/image.png`);
export const interact = (digest, state) => json(`/v1/studies/${digest}/interactions`, post(state));
export const probe = (digest, box, image) => json(`/v1/studies/${digest}/probe`, post({ box, image }));
export const overlay = (digest, concept, state) => blob(`/v1/studies/${digest}/maps/${part(concept)}.png`, post(state));

export function upload(file, name) {
  const form = new FormData();
  form.append("file", file, name);
  return json("/v1/studies", { method: "POST", body: form });
}
