// The page's nodes. Text from the server only ever becomes text nodes.

/** @typedef {string | number | boolean | null | undefined | ((event: any) => unknown)} Attribute */
/** @typedef {Node | string} Child */

/**
 * A new element. `on…` attributes are listeners, booleans are present or absent, null and undefined are left out, and
 * children may be nested, null or false.
 * @param {string} tag
 * @param {Record<string, Attribute>} attributes
 * @param {...(Child | null | false | undefined | Array<Child | null | false | undefined>)} children
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  setAttributes(node, attributes);
  for (const child of children.flat()) if (child !== null && child !== undefined && child !== false) node.append(child);
  return node;
}

/**
 * The same for SVG.
 * @param {string} tag
 * @param {Record<string, Attribute>} attributes
 * @param {...Child} children
 * @returns {SVGElement}
 */
export function shape(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  setAttributes(node, attributes);
  node.append(...children);
  return /** @type {SVGElement} */ (node);
}

/**
 * @param {Element} node
 * @param {Record<string, Attribute>} attributes
 */
export function setAttributes(node, attributes) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key.slice(2), /** @type {EventListener} */ (value));
    else if (typeof value === "boolean") node.toggleAttribute(key, value);
    else if (value !== null && value !== undefined) node.setAttribute(key, String(value));
  }
}

/**
 * A button that is no submit.
 * @param {Child | Child[]} content
 * @param {(event: any) => unknown} onclick
 * @param {Record<string, Attribute>} attributes
 * @returns {HTMLButtonElement}
 */
export const button = (content, onclick, attributes = {}) =>
  /** @type {HTMLButtonElement} */ (element("button", { type: "button", onclick, ...attributes }, ...[content].flat()));

/**
 * The element of an id, which must be there.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`#${id} is not on the page`);
  return node;
}

/**
 * Replaces what is inside a node and leaves the keyboard where it was: on the node with the same `data-key`.
 * @param {HTMLElement} node
 * @param {...Child} children
 */
export function refill(node, ...children) {
  const active = document.activeElement;
  const key = node.contains(active) ? /** @type {HTMLElement} */ (active)?.dataset?.key : undefined;
  node.replaceChildren(...children);
  if (key !== undefined)
    /** @type {HTMLElement | null} */ (node.querySelector(`[data-key="${CSS.escape(key)}"]`))?.focus();
}

/** The head of a table. @param {string[]} names of its columns */
export const tableHead = (names) =>
  element(
    "thead",
    {},
    element(
      "tr",
      {},
      names.map((name) => element("th", { scope: "col" }, name)),
    ),
  );

/**
 * Sets CSS properties by the object model, which the content security policy allows.
 * @template {HTMLElement | SVGElement} T
 * @param {T} node
 * @param {Record<string, string | number>} properties
 * @returns {T}
 */
export function styled(node, properties) {
  for (const [name, value] of Object.entries(properties)) node.style.setProperty(name, String(value));
  return node;
}
