// A study by its address in an archive: /?node=NAME&study=UID or /?node=NAME&accession=NUMBER, as a PACS opens it.

import { byId, element } from "./dom.js";
import { strings } from "./strings.js";

/**
 * Fetches the first image of the study that a query names.
 * @param {URLSearchParams} query
 * @param {import("./types.js").App} app
 * @returns {Promise<string | null>} the hash of its reading; null: the query names none, or it could not be had
 */
export async function openFromArchive(query, app) {
  const node = query.get("node");
  const [study, accession] = [query.get("study"), query.get("accession")];
  if (!node || !(study || accession)) return null;
  byId("view").replaceChildren(element("p", { class: "hint", role: "status" }, strings.archive.looking(node)));
  try {
    const { instances } = await app.api.instances(node, { study_uid: study, accession_number: accession, limit: 1 });
    if (!instances.length) throw new app.api.ApiError(strings.archive.none(node), "not_found", 404);
    const { study_uid, series_uid, instance_uid } = instances[0];
    const original = { study_uid, series_uid, instance_uid };
    return app.remember(await app.api.fetchInstance(node, original), { origin: { node, original } });
  } catch (error) {
    app.notices.explainError(error);
    return null;
  }
}
