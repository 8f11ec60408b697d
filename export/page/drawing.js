// A sheet to draw on with a finger, a mouse or the keyboard, with the aspect ratio of the network's input.
"use strict";

const SHEET = 320; // least length of its longer side, in pixels
const PEN_WIDTH = 1 / 10; // of the shorter side

class Drawing {
  // `changed` is called after each change, with true for a complete stroke.
  constructor(canvas, cursor, darkPaper, changed) {
    const cell = Math.ceil(SHEET / Math.max(imageWidth, imageHeight));
    Object.assign(this, { canvas, cursor, changed, strokes: [], at: [0.5, 0.5], down: false });
    [this.paper, this.ink] = darkPaper ? ["#000", "#fff"] : ["#fff", "#000"];
    canvas.width = imageWidth * cell;
    canvas.height = imageHeight * cell;
    this.pen = canvas.getContext("2d", { willReadFrequently: true });
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => this.#end());
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => this.#lift());
    this.#paint();
  }

  get empty() {
    return this.strokes.length === 0;
  }

  // The input of the network: each pixel is the mean of its part of the sheet, as a byte.
  view() {
    const { width, height } = this.canvas;
    const rows = (from, to) => withoutAlpha(this.pen.getImageData(0, from, width, to - from).data, imageChannels);
    const sheet = { width, height, channels: imageChannels, rows };
    return resample(sheet, [0, 0, width, height], imageWidth, imageHeight, "box");
  }

  clear() {
    this.strokes = [];
    this.#paint();
    this.changed(true);
  }

  undo() {
    this.strokes.pop();
    this.#paint();
    this.changed(true);
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  #begin(event) {
    if (event.button !== 0) return;
    this.#lift();
    this.cursor.hidden = true;
    this.canvas.setPointerCapture(event.pointerId);
    this.pointer = event.pointerId;
    this.#stroke(this.#place(event));
  }

  #move(event) {
    if (event.pointerId !== this.pointer) return;
    for (const part of event.getCoalescedEvents?.() ?? [event]) this.strokes.at(-1).push(this.#place(part));
    this.#paint();
    this.changed(false);
  }

  #end() {
    if (this.pointer === undefined) return;
    this.pointer = undefined;
    this.changed(true);
  }

  #stroke(place) {
    this.strokes.push([place]);
    this.#paint();
    this.changed(false);
  }

  #lift() {
    if (!this.down) return;
    this.down = false;
    this.cursor.classList.remove("down");
    this.changed(true);
  }

  // Arrows move the pen, the space bar lowers and lifts it, Delete clears the sheet.
  #key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) {
      this.at = this.at.map((x, i) => Math.min(1, Math.max(0, x + moves[event.key][i] / 32)));
      if (this.down) {
        this.strokes.at(-1).push(this.at);
        this.#paint();
        this.changed(false);
      }
    } else if (event.key === " ") {
      if (this.down) {
        this.#lift();
      } else {
        this.down = true;
        this.cursor.classList.add("down");
        this.#stroke(this.at);
      }
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.#lift();
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
    this.cursor.hidden = false;
    [this.cursor.style.left, this.cursor.style.top] = this.at.map((x) => `${100 * x}%`);
  }

  #paint() {
    const { width, height } = this.canvas;
    this.pen.fillStyle = this.paper;
    this.pen.fillRect(0, 0, width, height);
    this.pen.lineWidth = PEN_WIDTH * Math.min(width, height);
    this.pen.lineCap = this.pen.lineJoin = "round";
    this.pen.strokeStyle = this.ink;
    for (const stroke of this.strokes) {
      this.pen.beginPath();
      this.pen.moveTo(stroke[0][0] * width, stroke[0][1] * height);
      for (const [x, y] of stroke) this.pen.lineTo(x * width, y * height);
      this.pen.stroke();
    }
  }
}
