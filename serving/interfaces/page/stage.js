// The image with its boxes. The SVG's user units are pixels of the uploaded image, so a box needs no conversion.
// The stage holds no state of the reading: it draws what it is given and reports what the reader did.

const SVG = "http://www.w3.org/2000/svg";
const MIN_DRAG = 0.015; // of the image's longer side: less is a click, not a box

function shape(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

export class Stage {
  // onBox(box) is called with a finished box, without its kind.
  constructor(root, svg, onBox) {
    this.root = root;
    this.svg = svg;
    this.onBox = onBox;
    this.size = null;
    this.start = null;
    this.draft = shape("rect", { class: "draft" });
    svg.addEventListener("pointerdown", (event) => this.begin(event));
    svg.addEventListener("pointermove", (event) => this.stretch(event));
    svg.addEventListener("pointerup", (event) => this.finish(event));
    svg.addEventListener("pointercancel", () => this.cancel());
    window.addEventListener("keydown", (event) => event.key === "Escape" && this.cancel());
  }

  show(size) {
    this.size = size;
    this.root.hidden = false;
    this.root.style.setProperty("--ratio", size.width / size.height);
    this.svg.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
  }

  // boxes: with a `tag` each. peak: where the chosen concept's map is largest. look: where the next question is about.
  draw(boxes, peak, look, kind) {
    this.kind = kind;
    this.svg.replaceChildren(this.draft);
    boxes.forEach((box) => {
      const { x_min: x, y_min: y, x_max, y_max } = box;
      const rect = { x, y, width: x_max - x, height: y_max - y };
      const look = box.pending ? `${box.kind} pending` : box.kind;
      this.svg.append(shape("rect", { class: "halo", ...rect }), shape("rect", { class: look, ...rect }));
      const unit = this.unit();
      const label = shape("text", { class: `tag ${box.kind}`, x: x + 4 * unit, y: y + 15 * unit, "font-size": 14 * unit });
      label.textContent = box.tag;
      this.svg.append(label);
    });
    if (peak) {
      const r = 7 * this.unit();
      this.svg.append(shape("circle", { class: "halo", cx: peak.x, cy: peak.y, r }));
      this.svg.append(shape("circle", { class: "peak", cx: peak.x, cy: peak.y, r }));
    }
    if (look) {
      const [r, size] = [13 * this.unit(), 16 * this.unit()];
      this.svg.append(shape("circle", { class: "look", cx: look.x, cy: look.y, r }));
      const mark = shape("text", { class: "tag look", x: look.x + r, y: look.y - r / 2, "font-size": size });
      mark.textContent = "?";
      this.svg.append(mark);
    }
  }

  // Image pixels in one pixel of the screen.
  unit() {
    return this.size.width / (this.svg.getBoundingClientRect().width || this.size.width);
  }

  point(event) {
    const frame = this.svg.getBoundingClientRect();
    const clamp = (value, limit) => Math.min(Math.max(value, 0), limit);
    return {
      x: clamp(((event.clientX - frame.left) / frame.width) * this.size.width, this.size.width),
      y: clamp(((event.clientY - frame.top) / frame.height) * this.size.height, this.size.height),
    };
  }

  begin(event) {
    if (event.button !== 0 || !this.size) return;
    event.preventDefault();
    this.svg.setPointerCapture(event.pointerId);
    this.start = this.point(event);
  }

  stretch(event) {
    if (!this.start) return;
    const { x_min, y_min, x_max, y_max } = this.span(event);
    const rect = { x: x_min, y: y_min, width: x_max - x_min, height: y_max - y_min, class: `draft ${this.kind()}` };
    for (const [key, value] of Object.entries(rect)) this.draft.setAttribute(key, value);
  }

  finish(event) {
    if (!this.start) return;
    const box = this.span(event);
    this.cancel();
    const enough = MIN_DRAG * Math.max(this.size.width, this.size.height);
    if (box.x_max - box.x_min >= enough && box.y_max - box.y_min >= enough) this.onBox(box);
  }

  span(event) {
    const end = this.point(event);
    return {
      x_min: Math.min(this.start.x, end.x),
      y_min: Math.min(this.start.y, end.y),
      x_max: Math.max(this.start.x, end.x),
      y_max: Math.max(this.start.y, end.y),
    };
  }

  cancel() {
    this.start = null;
    for (const [key, value] of Object.entries({ class: "draft", width: 0, height: 0 })) this.draft.setAttribute(key, value);
  }
}
