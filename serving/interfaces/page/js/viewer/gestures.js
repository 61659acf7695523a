// Mouse, pen and touch on the image. One pointer draws, pulls a box, pushes the image or changes its contrast, as the
// tool and the button say; two fingers push and zoom; the wheel zooms. Once a pen was seen, fingers only push.

/** @typedef {{ x: number, y: number }} Point on the screen, from the image's upper left corner of the viewer */
/**
 * What the gestures mean is for others.
 * @typedef {object} Handlers
 * @property {() => string} tool focus, ignore, finding, contrast or pan
 * @property {(start: Point, end: Point) => void} onDraft a box is being drawn
 * @property {(start: Point, end: Point) => void} onDraw it is drawn
 * @property {(index: number, part: string, from: Point, to: Point, done: boolean) => void} onPull a box is moved or resized
 * @property {(dx: number, dy: number) => void} onPan
 * @property {(factor: number, point: Point) => void} onZoom
 * @property {(dx: number, dy: number) => void} onContrast
 * @property {(point: Point) => void} onTap
 * @property {() => void} onCancel
 */

const STILL = 4; // screen pixels: less is a tap

export class Gestures {
  /** @param {SVGElement} surface @param {Handlers} handlers */
  constructor(surface, handlers) {
    this.surface = surface;
    this.handlers = handlers;
    /** @type {Map<number, Point>} */
    this.pointers = new Map();
    /** @type {{ kind: string, id: number, start: Point, last: Point, index: number, part: string } | null} */
    this.act = null;
    this.pen = false;
    const listen = (/** @type {string} */ name, /** @type {(event: any) => void} */ run) =>
      surface.addEventListener(name, run, { passive: false });
    listen("pointerdown", (event) => this.#down(event));
    listen("pointermove", (event) => this.#move(event));
    listen("pointerup", (event) => this.#up(event));
    listen("pointercancel", (event) => this.cancel(event.pointerId));
    listen("contextmenu", (event) => event.preventDefault());
    listen("wheel", (event) => {
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 16 : 1;
      handlers.onZoom(Math.exp((-event.deltaY * lines) / 400), this.#at(event));
    });
  }

  /** @param {MouseEvent} event @returns {Point} */
  #at(event) {
    const frame = this.surface.getBoundingClientRect();
    return { x: event.clientX - frame.left, y: event.clientY - frame.top };
  }

  /** @param {PointerEvent} event */
  #kindOf(event) {
    if (event.pointerType === "pen") this.pen = true;
    if (event.button === 1 || (event.pointerType === "touch" && this.pen)) return "pan";
    if (event.button === 2) return "contrast";
    const tool = this.handlers.tool();
    if (tool === "pan" || tool === "contrast") return tool;
    return /** @type {SVGElement} */ (event.target).dataset?.part ? "pull" : "draw";
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (event.button > 2) return;
    event.preventDefault();
    if (document.activeElement instanceof HTMLElement) document.activeElement.blur();
    const start = this.#at(event);
    this.surface.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, start);
    if (this.pointers.size > 1) {
      // A second finger: what the first one began was no box.
      this.act = null;
      this.handlers.onCancel();
      return;
    }
    const { index = "-1", part = "" } = /** @type {SVGElement} */ (event.target).dataset ?? {};
    this.act = { kind: this.#kindOf(event), id: event.pointerId, start, last: start, index: Number(index), part };
  }

  /** @param {PointerEvent} event */
  #move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = this.#at(event);
    if (this.pointers.size === 2) this.#pinch(event.pointerId, before, now);
    this.pointers.set(event.pointerId, now);
    if (!this.act || this.act.id !== event.pointerId) return;
    const { kind, start, last, index, part } = this.act;
    if (kind === "draw") this.handlers.onDraft(start, now);
    else if (kind === "pull") this.handlers.onPull(index, part, start, now, false);
    else if (kind === "pan") this.handlers.onPan(now.x - last.x, now.y - last.y);
    else this.handlers.onContrast(now.x - last.x, now.y - last.y);
    this.act.last = now;
  }

  /** @param {number} id @param {Point} before @param {Point} now */
  #pinch(id, before, now) {
    const other = [...this.pointers].find(([each]) => each !== id)?.[1];
    if (!other) return;
    const apart = (/** @type {Point} */ point) => Math.max(Math.hypot(point.x - other.x, point.y - other.y), 1);
    const middle = { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 };
    this.handlers.onZoom(apart(now) / apart(before), middle);
    this.handlers.onPan((now.x - before.x) / 2, (now.y - before.y) / 2);
  }

  /** @param {PointerEvent} event */
  #up(event) {
    const act = this.act;
    this.pointers.delete(event.pointerId);
    if (!act || act.id !== event.pointerId) return;
    this.act = null;
    const end = this.#at(event);
    const still = Math.hypot(end.x - act.start.x, end.y - act.start.y) < STILL;
    if (still && act.kind !== "contrast") {
      this.handlers.onCancel();
      this.handlers.onTap(end);
    } else if (act.kind === "draw") this.handlers.onDraw(act.start, end);
    else if (act.kind === "pull") this.handlers.onPull(act.index, act.part, act.start, end, true);
  }

  /** @param {number} [id] */
  cancel(id) {
    if (id !== undefined) this.pointers.delete(id);
    if (!this.act) return;
    this.act = null;
    this.handlers.onCancel();
  }
}
