// The cameras: images of one step, all of the same step, asked for ahead of time while it plays.

import { LABELS } from "/static/api.js";
import { h } from "/static/dom.js";

const PIXELS = 40e6; // of kept images: some 160 MB
const AHEAD = 14; // steps
const AT_ONCE = 6; // requests

export class Player {
  constructor(key, version, cameras) {
    this.key = key;
    this.version = version;
    this.cameras = Object.entries(cameras).map(([name, [height, width]], number) => {
      const canvas = h("canvas", { width: Math.max(1, width), height: Math.max(1, height) });
      const label = h("span", { className: "label", hidden: true });
      const waiting = h("div", { className: "waiting" }, "");
      const element = h("div", { className: "camera" }, waiting, canvas, h("span", { className: "name" }, name), label);
      return { name, number, canvas, label, waiting, element };
    });
    this.element = h("div", { className: "cameras" }, this.cameras.map((camera) => camera.element));
    if (!this.cameras.length) this.element.append(h("div", { className: "camera" }, h("div", { className: "waiting" }, "This episode was recorded without cameras.")));
    this.images = new Map(); // address -> image, or null where there is none
    this.pending = new Map();
    this.queue = [];
    this.wanted = -1;
    this.shownStep = -1;
    this.pixels = 0;
    this.closed = false;
  }

  close() {
    this.closed = true;
    this.queue = [];
    this.images.clear();
  }

  address(camera, step) {
    return `/api/episodes/${this.key}/frames/${camera.number}/${step}?v=${this.version}`;
  }

  // Show a step as soon as all its images are there; ahead: the steps that come next.
  show(step, ahead = []) {
    this.wanted = step;
    const urgent = this.cameras.map((camera) => this.address(camera, step));
    const later = ahead.slice(0, AHEAD).flatMap((each) => this.cameras.map((camera) => this.address(camera, each)));
    this.queue = [...urgent, ...later].filter((address) => !this.images.has(address) && !this.pending.has(address));
    this.load();
    this.draw();
  }

  isThere(step) {
    return this.cameras.every((camera) => this.images.has(this.address(camera, step)));
  }

  load() {
    while (this.pending.size < AT_ONCE && this.queue.length) {
      const address = this.queue.shift();
      if (this.pending.has(address) || this.images.has(address)) continue;
      const image = new Image();
      image.src = address;
      this.pending.set(address, image.decode().then(() => image, () => null).then((found) => {
        this.pending.delete(address);
        if (this.closed) return;
        this.keep(address, found);
        this.load();
        this.draw();
      }));
    }
  }

  keep(address, image) {
    this.images.set(address, image);
    this.pixels += image ? image.naturalWidth * image.naturalHeight : 0;
    while (this.pixels > PIXELS && this.images.size > 2 * this.cameras.length) {
      const [oldest, gone] = this.images.entries().next().value;
      this.images.delete(oldest);
      this.pixels -= gone ? gone.naturalWidth * gone.naturalHeight : 0;
    }
  }

  draw() {
    if (this.wanted < 0 || !this.isThere(this.wanted)) return;
    for (const camera of this.cameras) {
      const image = this.images.get(this.address(camera, this.wanted));
      camera.waiting.textContent = image ? "" : "There is no image of this step.";
      camera.canvas.hidden = !image;
      if (!image) continue;
      if (camera.canvas.width !== image.naturalWidth || camera.canvas.height !== image.naturalHeight) Object.assign(camera.canvas, { width: image.naturalWidth, height: image.naturalHeight });
      camera.canvas.getContext("2d").drawImage(image, 0, 0);
    }
    if (this.shownStep < 0) performance.mark("first-frame");
    this.shownStep = this.wanted;
    this.element.dataset.step = this.wanted;
  }

  // Whose step it is.
  mark(label) {
    for (const camera of this.cameras) {
      camera.label.hidden = label === undefined;
      if (label === undefined) continue;
      camera.label.textContent = LABELS[label];
      camera.label.className = `label bg-${LABELS[label]}`;
      camera.element.style.setProperty("--now", `var(--${LABELS[label]})`);
    }
  }
}
