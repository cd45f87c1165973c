/** The picture with boxes and masks: zoom, pan, coordinates, and which object the pointer is on. */

import { colourOf, inkOn, rgbOf } from "./colours.js";
import { count, el, iconButton } from "./dom.js";
import { decodeRle } from "./parse.js";

const MAX_ZOOM = 40; // times the size at which the picture fits
const MAX_MASK_SIDE_PX = 1200; // masks are drawn no finer than this
const PIXELS_FROM = 3; // screen pixels of a picture's pixel from which it is drawn as a square

export class Viewer {
  /** @param {{onLight: (index: ?number) => void, onView?: Function}} listeners */
  constructor({ onLight, onView }) {
    this.onLight = onLight;
    this.onView = onView;
    this.detections = [];
    this.marks = []; // {box, tag, canvas} of each detection
    this.picture = null;
    this.view = { zoom: 1, x: 0.5, y: 0.5 }; // how often larger than fitting, and what is centred
    this.opacity = 0.45;
    this.img = el("img", { alt: "" });
    this.world = el("div.world", {}, this.img);
    this.layer = el("div.marks", { "aria-hidden": "true" });
    this.readout = el("output.readout", { hidden: true });
    this.stage = el(
      "div.stage",
      { tabIndex: 0, role: "group" },
      this.world,
      this.layer,
      this.readout,
    );
    this.zoomText = el("output.zoom-text", {}, "Fit");
    this.tools = el(
      "div.stage-tools",
      { role: "group", "aria-label": "Zoom" },
      iconButton("minus", "Zoom out", () => this.zoomBy(1 / 1.5)),
      this.zoomText,
      iconButton("plus", "Zoom in", () => this.zoomBy(1.5)),
      iconButton("fit", "Show the whole picture", () => this.fit()),
    );
    this.element = el("div.viewer", { hidden: true }, this.stage, this.tools);
    new ResizeObserver(() => this.layout()).observe(this.stage);
    this.#listen();
  }

  /** Shows another picture, without objects. */
  show(picture) {
    this.picture = picture;
    this.element.hidden = !picture;
    this.setDetections([]);
    if (!picture) return;
    this.img.src = picture.url;
    this.img.width = picture.width;
    this.img.height = picture.height;
    this.stage.style.aspectRatio = `${picture.width} / ${picture.height}`;
    this.fit();
  }

  /** Shows objects; those that were there before stay without a new animation. */
  setDetections(detections) {
    this.detections = detections;
    while (this.marks.length > detections.length) this.#remove(this.marks.pop());
    detections.forEach((detection, i) => {
      const mark = (this.marks[i] ??= this.#add());
      const colour = colourOf(detection.label, detections);
      mark.box.style.setProperty("--colour", colour);
      mark.box.style.setProperty("--ink", inkOn(colour));
      mark.box.classList.toggle("pending", Boolean(detection.pending));
      const score =
        detection.score === null || detection.score === undefined
          ? ""
          : ` ${detection.score.toFixed(2)}`;
      mark.tag.textContent = `${detection.label ?? "object"}${score}`;
      if (detection.mask && mark.rle !== detection.mask) this.#readMask(mark, detection);
      if (!detection.mask && mark.canvas) this.#removeMask(mark);
    });
    this.paintMasks();
    this.layout();
    this.#describe();
  }

  /** Hides the objects for which this is false. */
  setVisible(visible) {
    this.marks.forEach((mark, i) => {
      mark.box.hidden = !visible[i];
      if (mark.canvas) mark.canvas.hidden = !visible[i];
    });
    this.#describe();
  }

  /** Lights one object and dims the others; null lights none. */
  light(index) {
    this.layer.classList.toggle("some-lit", index !== null);
    this.world.classList.toggle("some-lit", index !== null);
    this.marks.forEach((mark, i) => {
      mark.box.classList.toggle("lit", i === index);
      mark.canvas?.classList.toggle("lit", i === index);
    });
  }

  setOpacity(opacity) {
    this.opacity = opacity;
    this.paintMasks();
  }

  fit() {
    this.setView({ zoom: 1, x: 0.5, y: 0.5 });
  }

  setView(view) {
    this.view = view;
    this.layout();
  }

  /** @param {{x: number, y: number}} [at] point of the stage that stays where it is. */
  zoomBy(factor, at) {
    const { width, height } = this.stage.getBoundingClientRect();
    const point = at ?? { x: width / 2, y: height / 2 };
    const [px, py] = this.#toPicture(point);
    const zoom = Math.min(Math.max(this.view.zoom * factor, 1), MAX_ZOOM);
    const scale = this.#fitScale() * zoom;
    this.#move({
      zoom,
      x: (px - (point.x - width / 2) / scale) / this.picture.width,
      y: (py - (point.y - height / 2) / scale) / this.picture.height,
    });
  }

  panBy(dx, dy) {
    const scale = this.#fitScale() * this.view.zoom;
    const { zoom, x, y } = this.view;
    this.#move({
      zoom,
      x: x - dx / scale / this.picture.width,
      y: y - dy / scale / this.picture.height,
    });
  }

  /** Places everything for the present view. */
  layout() {
    if (!this.picture || !this.stage.clientWidth) return;
    const { width: w, height: h } = this.picture;
    const { clientWidth, clientHeight } = this.stage;
    const scale = this.#fitScale() * this.view.zoom;
    // A picture smaller than the stage stays in its middle; a larger one leaves no gap at an edge.
    const clamp = (value, size, room) => {
      const half = room / 2 / (scale * size);
      return half >= 0.5 ? 0.5 : Math.min(Math.max(value, half), 1 - half);
    };
    this.view.x = clamp(this.view.x, w, clientWidth);
    this.view.y = clamp(this.view.y, h, clientHeight);
    const left = clientWidth / 2 - this.view.x * w * scale;
    const top = clientHeight / 2 - this.view.y * h * scale;
    this.placed = { left, top, scale };
    this.world.style.transform = `translate(${left}px, ${top}px) scale(${scale})`;
    this.world.classList.toggle("pixels", scale >= PIXELS_FROM);
    this.stage.classList.toggle("zoomed", this.view.zoom > 1);
    this.zoomText.textContent = this.view.zoom === 1 ? "Fit" : `${Math.round(scale * 100)} %`;
    this.detections.forEach((detection, i) => {
      const [x0, y0, x1, y1] = detection.box_xyxy_px;
      const { box, tag } = this.marks[i];
      box.style.left = `${left + x0 * scale}px`;
      box.style.top = `${top + y0 * scale}px`;
      box.style.width = `${Math.max((x1 - x0) * scale, 1)}px`;
      box.style.height = `${Math.max((y1 - y0) * scale, 1)}px`;
      tag.classList.toggle("inside", top + y0 * scale < 22);
    });
  }

  /** Draws the masks with the present opacity: a filled area with a firm edge. */
  paintMasks() {
    this.marks.forEach((mark, i) => {
      if (!mark.canvas) return;
      const { bits, width, height } = mark;
      const [r, g, b] = rgbOf(colourOf(this.detections[i].label, this.detections));
      const context = mark.canvas.getContext("2d");
      const pixels = context.createImageData(width, height);
      const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && bits[y * width + x];
      const fill = Math.round(this.opacity * 255);
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          if (!bits[y * width + x]) continue;
          const isEdge = !(
            inside(x - 1, y) &&
            inside(x + 1, y) &&
            inside(x, y - 1) &&
            inside(x, y + 1)
          );
          pixels.data.set([r, g, b, isEdge ? Math.max(fill, 230) : fill], (y * width + x) * 4);
        }
      }
      context.putImageData(pixels, 0, 0);
    });
  }

  #add() {
    const tag = el("span.tag");
    const box = el("div.box", {}, tag);
    this.layer.append(box);
    return { box, tag, canvas: null, rle: null };
  }

  #remove(mark) {
    mark.box.remove();
    mark.canvas?.remove();
  }

  #removeMask(mark) {
    mark.canvas.remove();
    mark.canvas = mark.rle = null;
  }

  /** Keeps the part of a mask that is not empty, no finer than it can be seen. */
  #readMask(mark, detection) {
    const [fullHeight, fullWidth] = detection.mask.size;
    const full = decodeRle(detection.mask);
    const step = Math.max(1, Math.max(fullHeight, fullWidth) / MAX_MASK_SIDE_PX);
    const [x0, y0, x1, y1] = detection.box_xyxy_px;
    const left = Math.max(0, Math.floor(x0) - 2);
    const top = Math.max(0, Math.floor(y0) - 2);
    const width = Math.max(1, Math.ceil((Math.min(fullWidth, Math.ceil(x1) + 2) - left) / step));
    const height = Math.max(1, Math.ceil((Math.min(fullHeight, Math.ceil(y1) + 2) - top) / step));
    const bits = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        bits[y * width + x] =
          full[Math.floor(top + y * step) * fullWidth + Math.floor(left + x * step)] ?? 0;
      }
    }
    mark.canvas?.remove();
    const canvas = el("canvas", { width, height });
    Object.assign(canvas.style, {
      left: `${left}px`,
      top: `${top}px`,
      width: `${width * step}px`,
      height: `${height * step}px`,
    });
    this.world.append(canvas);
    Object.assign(mark, { canvas, bits, width, height, rle: detection.mask });
  }

  #fitScale() {
    const { width, height } = this.picture;
    return Math.min(this.stage.clientWidth / width, this.stage.clientHeight / height);
  }

  #toPicture({ x, y }) {
    const { left, top, scale } = this.placed;
    return [(x - left) / scale, (y - top) / scale];
  }

  #move(view) {
    this.setView(view);
    this.onView?.(this.view);
  }

  #describe() {
    if (!this.picture) return;
    const shown = this.marks.filter((mark) => !mark.box.hidden).length;
    const { name, width, height } = this.picture;
    const keys = "Arrow keys move it, plus and minus zoom, 0 shows all of it.";
    this.stage.setAttribute(
      "aria-label",
      `${name}, ${width} by ${height} pixels, ${count(shown, "object")} marked. ${keys}`,
    );
  }

  /** The smallest visible object at a point of the picture. */
  #objectAt(px, py) {
    let best = null;
    let least = Infinity;
    this.detections.forEach(({ box_xyxy_px: [x0, y0, x1, y1] }, i) => {
      const area = (x1 - x0) * (y1 - y0);
      const isIn = px >= x0 && px <= x1 && py >= y0 && py <= y1;
      if (isIn && area < least && !this.marks[i].box.hidden) [best, least] = [i, area];
    });
    return best;
  }

  #point(event) {
    const { left, top } = this.stage.getBoundingClientRect();
    return { x: event.clientX - left, y: event.clientY - top };
  }

  #showPixel(px, py) {
    const [x, y] = [Math.floor(px), Math.floor(py)];
    const isIn = x >= 0 && y >= 0 && x < this.picture.width && y < this.picture.height;
    this.readout.hidden = !isIn;
    if (!isIn) return;
    this.pixel ??= el("canvas", { width: 1, height: 1 }).getContext("2d", {
      willReadFrequently: true,
    });
    const sx = this.img.naturalWidth / this.picture.width;
    this.pixel.drawImage(this.img, x * sx, y * sx, 1, 1, 0, 0, 1, 1);
    const [r, g, b] = this.pixel.getImageData(0, 0, 1, 1).data;
    this.readout.textContent = `x ${x}  y ${y}  ·  rgb ${r} ${g} ${b}`;
  }

  #listen() {
    const { stage } = this;
    const pointers = new Map();
    let spread = null; // distance of two fingers
    stage.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, this.#point(event));
      spread = null;
      if (this.view.zoom > 1) stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", (event) => {
      const now = this.#point(event);
      const before = pointers.get(event.pointerId);
      if (before) {
        pointers.set(event.pointerId, now);
        if (pointers.size === 2) {
          const [a, b] = [...pointers.values()];
          const apart = Math.hypot(a.x - b.x, a.y - b.y);
          if (spread) this.zoomBy(apart / spread, { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 });
          spread = apart;
        } else if (this.view.zoom > 1) this.panBy(now.x - before.x, now.y - before.y);
      }
      const [px, py] = this.#toPicture(now);
      this.#showPixel(px, py);
      this.onLight(this.#objectAt(px, py));
    });
    for (const name of ["pointerup", "pointercancel", "pointerleave"]) {
      stage.addEventListener(name, (event) => {
        pointers.delete(event.pointerId);
        spread = null;
        if (name !== "pointerleave") return;
        this.readout.hidden = true;
        this.onLight(null);
      });
    }
    stage.addEventListener("dblclick", (event) => this.zoomBy(2, this.#point(event)));
    stage.addEventListener(
      "wheel",
      (event) => {
        // An unfocused stage lets the page scroll.
        if (!event.ctrlKey && !event.metaKey && document.activeElement !== stage) return;
        event.preventDefault();
        this.zoomBy(Math.exp(-event.deltaY / 300), this.#point(event));
      },
      { passive: false },
    );
    stage.addEventListener("keydown", (event) => {
      const step = 60;
      const action = {
        "+": () => this.zoomBy(1.5),
        "=": () => this.zoomBy(1.5),
        "-": () => this.zoomBy(1 / 1.5),
        0: () => this.#move({ zoom: 1, x: 0.5, y: 0.5 }),
        ArrowLeft: () => this.panBy(step, 0),
        ArrowRight: () => this.panBy(-step, 0),
        ArrowUp: () => this.panBy(0, step),
        ArrowDown: () => this.panBy(0, -step),
      }[event.key];
      const isArrow = event.key.startsWith("Arrow");
      if (
        !action ||
        event.ctrlKey ||
        event.metaKey ||
        event.altKey ||
        (isArrow && this.view.zoom === 1)
      )
        return;
      event.preventDefault();
      action();
    });
  }
}
