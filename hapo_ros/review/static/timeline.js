// The timeline of an episode: c_t in colour, takeovers, actions, gripper, confidence, success.
// Its axis is the control step. Two canvases: what changes with the view, and what moves over it.

import { LABELS } from "/static/api.js";
import { clock, h } from "/static/dom.js";

const GUTTER = 128;
const RIGHT = 14;
const AXIS = ["#ff7a85", "#b5e07a", "#7fb2ff"]; // x, y, z
const ROWS = { overview: 16, ruler: 24, labels: 40, live: 8, curve: 46, gripper: 30, confidence: 34, success: 12 };
const GAP = 9;
const POLICY = 1, HUMAN = 2, NONE = 3;

export class Timeline {
  // hear: seek(step), select(first, last) or select(null), zoomed().
  constructor(hear) {
    this.hear = hear;
    this.base = h("canvas");
    this.over = h("canvas");
    this.tip = h("div", { className: "tip", hidden: true });
    this.element = h("div", { className: "timeline", role: "slider", ariaLabel: "Timeline" }, this.base, this.over, this.tip);
    this.step = 0;
    this.selection = null;
    this.hover = null;
    this.view = [0, 1];
    const style = getComputedStyle(document.documentElement);
    this.color = (name) => style.getPropertyValue(`--${name}`).trim();
    this.labelColors = LABELS.map((name) => this.color(name));
    this.listen();
    this.resizes = new ResizeObserver(() => this.resize());
    this.resizes.observe(this.element);
  }

  close() {
    this.resizes.disconnect();
  }

  setData(data) {
    this.data = data;
    this.view = [0, data.steps];
    this.layOut();
    this.resize();
  }

  // Curves to draw, and how high all of it is.
  layOut() {
    const { data } = this;
    const names = data.actionNames;
    const grippers = names.map((name, i) => (name.includes("gripper") ? i : -1)).filter((i) => i >= 0);
    const others = names.map((_, i) => i).filter((i) => !grippers.includes(i));
    const rows = [];
    for (let i = 0; i < others.length; i += 3) {
      const part = others.slice(i, i + 3);
      rows.push({ kind: "curve", title: "action", dims: part, names: part.map((d) => names[d]), colors: AXIS, height: ROWS.curve });
    }
    for (const d of grippers) rows.push({ kind: "curve", title: "", dims: [d], names: [names[d]], colors: [this.color("ink")], height: ROWS.gripper, stepped: true });
    if (data.confidence.some(Number.isFinite)) rows.push({ kind: "confidence", names: ["confidence"], colors: [this.color("accent")], height: ROWS.confidence, range: data.confidence.reduce((most, each) => (each > most ? each : most), 1) });
    rows.push({ kind: "success", names: ["success"], height: ROWS.success });
    let y = 8;
    this.at = { overview: y };
    y += ROWS.overview + 4;
    this.at.ruler = y;
    y += ROWS.ruler;
    this.at.labels = y;
    y += ROWS.labels + 3;
    this.at.live = y;
    y += ROWS.live + GAP;
    for (const row of rows) {
      row.y = y;
      y += row.height + GAP;
      if (row.kind === "curve") {
        row.range = 0;
        for (const d of row.dims) for (const track of [data.action, data.requested]) for (let i = d; i < track.length; i += names.length) if (Math.abs(track[i]) > row.range) row.range = Math.abs(track[i]);
        row.range = row.range || 1;
      }
    }
    this.rows = rows;
    this.height = y;
    this.element.style.height = `${this.height}px`;
  }

  resize() {
    if (!this.data) return;
    this.width = this.element.clientWidth;
    const scale = devicePixelRatio || 1;
    for (const canvas of [this.base, this.over]) {
      canvas.width = Math.round(this.width * scale);
      canvas.height = Math.round(this.height * scale);
      canvas.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
    }
    this.drawBase();
  }

  x(step) {
    return GUTTER + ((step - this.view[0]) / (this.view[1] - this.view[0])) * (this.width - GUTTER - RIGHT);
  }

  stepAt(x) {
    return this.view[0] + ((x - GUTTER) / (this.width - GUTTER - RIGHT)) * (this.view[1] - this.view[0]);
  }

  zoom(factor, at = this.step + 0.5) {
    const [from, to] = this.view;
    const span = Math.min(this.data.steps, Math.max(12, (to - from) * factor));
    const share = (at - from) / (to - from);
    this.setView(at - share * span, span);
  }

  setView(from, span) {
    const start = Math.min(Math.max(0, from), Math.max(0, this.data.steps - span));
    this.view = [start, start + Math.min(span, this.data.steps)];
    this.drawBase();
  }

  fit() {
    this.setView(0, this.data.steps);
  }

  // Keep the step in sight while it plays.
  setStep(step) {
    this.step = step;
    const [from, to] = this.view;
    if (step < from || step >= to) this.setView(step - (to - from) * 0.1, to - from);
    else this.drawOver();
  }

  select(first, last) {
    this.selection = first === null ? null : [Math.min(first, last), Math.max(first, last)];
    this.drawOver();
    this.hear.select(this.selection);
  }

  // Drawing

  drawBase() {
    const { data } = this;
    if (!data || !this.width) return;
    const draw = this.base.getContext("2d");
    draw.clearRect(0, 0, this.width, this.height);
    draw.font = "11px Inter, sans-serif";
    draw.textBaseline = "middle";
    this.drawRuns(draw, data.labels, 0, data.steps, (step) => GUTTER + (step / data.steps) * (this.width - GUTTER - RIGHT), this.at.overview + 3, ROWS.overview - 6);
    this.drawRuler(draw);
    const [from, to] = [Math.floor(this.view[0]), Math.min(data.steps, Math.ceil(this.view[1]))];
    draw.save();
    draw.beginPath();
    draw.rect(GUTTER, 0, this.width - GUTTER - RIGHT, this.height);
    draw.clip();
    const x = (step) => this.x(step);
    this.drawRuns(draw, data.labels, from, to, x, this.at.labels, ROWS.labels, true);
    this.drawGiven(draw, from, to);
    this.drawRuns(draw, data.live, from, to, x, this.at.live, ROWS.live);
    for (const row of this.rows) this.drawRow(draw, row, from, to);
    this.drawTakeovers(draw);
    draw.restore();
    this.name(draw, "label c_t", this.at.labels + ROWS.labels / 2, true);
    this.name(draw, "recorded", this.at.live + ROWS.live / 2);
    this.drawOver();
  }

  name(draw, text, y, strong = false) {
    draw.textAlign = "left";
    draw.fillStyle = this.color(strong ? "ink" : "muted");
    draw.font = `${strong ? 560 : 450} 11.5px Inter, sans-serif`;
    draw.fillText(text, 14, y);
  }

  // Runs of equal labels; where there is no room for all, the human's and the undesirable are on top.
  drawRuns(draw, labels, from, to, x, y, height, words = false) {
    const runs = [];
    for (let start = from; start < to; ) {
      let end = start + 1;
      while (end < to && labels[end] === labels[start]) end++;
      runs.push([start, end, labels[start]]);
      start = end;
    }
    const order = [NONE, POLICY, HUMAN, 0];
    runs.sort((a, b) => order.indexOf(a[2]) - order.indexOf(b[2]));
    for (const [start, end, label] of runs) {
      const left = x(start), width = Math.max(label === HUMAN || label === 0 ? 2 : 1, x(end) - left);
      draw.fillStyle = this.labelColors[label];
      draw.globalAlpha = label === NONE ? 0.55 : 1;
      draw.fillRect(left, y, width > 3 ? width - 0.6 : width, height);
      draw.globalAlpha = 1;
      if (!words || width < 26) continue;
      draw.fillStyle = this.color(label === NONE ? "ink" : "on-label");
      draw.textAlign = "center";
      draw.font = "600 11.5px Inter, sans-serif";
      const middle = (Math.max(left, GUTTER) + Math.min(left + width, this.width - RIGHT)) / 2;
      const name = `${LABELS[label]} ${end - start}`;
      const room = Math.min(left + width, this.width - RIGHT) - Math.max(left, GUTTER);
      const text = [name, String(end - start)].find((each) => draw.measureText(each).width < room - 10);
      if (text) draw.fillText(text, middle, y + height / 2 + 0.5);
    }
  }

  // What a reviewer said: hatched, with a line above it.
  drawGiven(draw, from, to) {
    const { given } = this.data;
    const y = this.at.labels;
    for (let start = from; start < to; ) {
      let end = start + 1;
      while (end < to && given[end] === given[start]) end++;
      if (given[start] >= 0) {
        const left = this.x(start), width = Math.max(2, this.x(end) - left);
        draw.save();
        draw.beginPath();
        draw.rect(left, y, width, ROWS.labels);
        draw.clip();
        draw.strokeStyle = "#0b0e1338";
        draw.lineWidth = 2;
        draw.beginPath();
        for (let at = left - ROWS.labels; at < left + width; at += 8) { draw.moveTo(at, y + ROWS.labels); draw.lineTo(at + ROWS.labels, y); }
        draw.stroke();
        draw.restore();
        draw.fillStyle = this.color("ink");
        draw.fillRect(left, y - 3, width - 0.6, 2);
      }
      start = end;
    }
  }

  drawRuler(draw) {
    const { data } = this;
    const { ruler } = this.at;
    const first = data.secondsAt(this.view[0]), last = data.secondsAt(this.view[1]);
    const wanted = Math.max(2, (this.width - GUTTER) / 95);
    const rough = Math.max(1e-6, (last - first) / wanted);
    const power = 10 ** Math.floor(Math.log10(rough));
    const every = rough > 10 ? [10, 15, 30, 60, 120, 300, 600].find((each) => each >= rough) ?? 600 : [1, 2, 5, 10].map((m) => m * power).find((each) => each >= rough);
    draw.textAlign = "center";
    draw.font = "11px Inter, sans-serif";
    for (let tick = Math.ceil(first / every) * every; tick <= last + 1e-9; tick += every) {
      const x = this.x(data.stepOfSeconds(tick));
      draw.fillStyle = this.color("line-strong");
      draw.fillRect(x, ruler + 15, 1, 5);
      draw.fillStyle = this.color("muted");
      const text = tick >= 60 ? `${Math.floor(tick / 60)}:${String(Math.round(tick % 60)).padStart(2, "0")}` : `${+tick.toFixed(3)} s`;
      if (x > GUTTER + 8 && x < this.width - RIGHT - 8) draw.fillText(text, x, ruler + 7);
    }
    draw.textAlign = "left";
    draw.fillStyle = this.color("faint");
  }

  drawTakeovers(draw) {
    const { labels } = this.at;
    for (const step of this.data.takeovers) {
      const x = this.x(step);
      if (x < GUTTER - 8 || x > this.width) continue;
      draw.strokeStyle = "#e7ebf166";
      draw.lineWidth = 1;
      draw.setLineDash([3, 3]);
      draw.beginPath();
      draw.moveTo(x, labels - 2);
      draw.lineTo(x, this.height - 4);
      draw.stroke();
      draw.setLineDash([]);
      draw.fillStyle = this.color("ink");
      draw.beginPath();
      draw.moveTo(x - 4.5, labels - 10);
      draw.lineTo(x + 4.5, labels - 10);
      draw.lineTo(x, labels - 3);
      draw.fill();
    }
  }

  drawRow(draw, row, from, to) {
    const { data } = this;
    draw.fillStyle = "#ffffff06";
    draw.fillRect(GUTTER, row.y, this.width, row.height);
    if (row.kind === "success") {
      draw.fillStyle = this.color("good");
      for (let i = 0; i < data.count; i++) {
        if (!data.success[i]) continue;
        const first = i;
        while (i + 1 < data.count && data.success[i + 1] && data.sequences[i + 1] === data.sequences[i] + 1) i++;
        const left = this.x(data.sequences[first]);
        draw.fillRect(left, row.y + 1, Math.max(1, this.x(data.sequences[i] + 1) - left), row.height - 2);
      }
      return;
    }
    draw.save();
    draw.beginPath();
    draw.rect(GUTTER, row.y, this.width, row.height);
    draw.clip();
    this.drawCurves(draw, row, from, to);
    draw.restore();
  }

  drawCurves(draw, row, from, to) {
    const { data } = this;
    const size = data.actionNames.length;
    if (row.kind === "confidence") {
      this.curve(draw, (i) => data.confidence[i], from, to, row, (v) => row.y + row.height - 2 - (v / row.range) * (row.height - 4), row.colors[0], 1);
      return;
    }
    draw.fillStyle = this.color("line");
    draw.fillRect(GUTTER, row.y + row.height / 2, this.width, 1);
    const up = (v) => row.y + row.height / 2 - (v / row.range) * (row.height / 2 - 2);
    row.dims.forEach((d, n) => this.curve(draw, (i) => data.requested[i * size + d], from, to, row, up, row.colors[n], 0.45, true));
    row.dims.forEach((d, n) => this.curve(draw, (i) => data.action[i * size + d], from, to, row, up, row.colors[n], 1));
  }

  // A value a step; broken where there is none. Many steps a pixel: from the least to the most.
  curve(draw, value, from, to, row, up, color, alpha, dashed = false) {
    const { data } = this;
    draw.strokeStyle = color;
    draw.globalAlpha = alpha;
    draw.lineWidth = dashed ? 1 : 1.4;
    if (dashed) draw.setLineDash([2, 2]);
    draw.beginPath();
    const perPixel = (this.view[1] - this.view[0]) / (this.width - GUTTER - RIGHT);
    let pen = false, last = -2;
    const first = data.indexFrom(from);
    if (perPixel > 2) {
      let column = null, low = 0, high = 0;
      const flush = () => { if (column !== null) { draw.moveTo(column + 0.5, up(low) + 0.5); draw.lineTo(column + 0.5, up(high) - 0.5); } };
      for (let i = first; i < data.count && data.sequences[i] < to; i++) {
        const v = value(i);
        if (!Number.isFinite(v)) continue;
        const at = Math.floor(this.x(data.sequences[i]));
        if (at !== column) { flush(); column = at; low = high = v; }
        else { low = Math.min(low, v); high = Math.max(high, v); }
      }
      flush();
    } else {
      for (let i = first; i < data.count && data.sequences[i] < to; i++) {
        const v = value(i);
        if (!Number.isFinite(v)) { pen = false; continue; }
        if (data.sequences[i] !== last + 1) pen = false;
        last = data.sequences[i];
        const left = this.x(last), right = this.x(last + 1), y = up(v);
        if (pen) draw.lineTo(left, y); else draw.moveTo(left, y);
        draw.lineTo(right, y);
        pen = true;
      }
    }
    draw.stroke();
    draw.setLineDash([]);
    draw.globalAlpha = 1;
  }

  drawOver() {
    const { data } = this;
    if (!data || !this.width) return;
    const draw = this.over.getContext("2d");
    draw.clearRect(0, 0, this.width, this.height);
    const right = this.width - RIGHT;
    // the window in the overview
    const whole = (step) => GUTTER + (step / data.steps) * (right - GUTTER);
    if (this.view[1] - this.view[0] < data.steps - 0.5) {
      const [a, b] = this.view.map(whole);
      draw.fillStyle = "#0b0e13a8";
      draw.fillRect(GUTTER, this.at.overview, a - GUTTER, ROWS.overview);
      draw.fillRect(b, this.at.overview, right - b, ROWS.overview);
      draw.strokeStyle = this.color("ink");
      draw.lineWidth = 1;
      draw.strokeRect(a + 0.5, this.at.overview + 0.5, b - a - 1, ROWS.overview - 1);
    }
    draw.fillStyle = this.color("ink");
    draw.fillRect(whole(this.step + 0.5) - 0.5, this.at.overview - 2, 1.5, ROWS.overview + 4);
    const clip = (x) => Math.min(right, Math.max(GUTTER, x));
    if (this.selection) {
      const left = clip(this.x(this.selection[0])), end = clip(this.x(this.selection[1] + 1));
      draw.fillStyle = "#ffffff1c";
      draw.fillRect(left, this.at.labels - 3, end - left, this.height - this.at.labels);
      draw.fillStyle = "#fff";
      for (const x of [left, end]) draw.fillRect(x - 1, this.at.labels - 4, 2, ROWS.labels + 8);
      draw.strokeStyle = "#fff";
      draw.lineWidth = 2;
      draw.strokeRect(left, this.at.labels - 1, end - left, ROWS.labels + 2);
    }
    this.drawValues(draw);
    const x = this.x(this.step + 0.5);
    if (x < GUTTER - 1 || x > right + 1) return;
    draw.fillStyle = "#fff";
    draw.fillRect(x - 0.75, this.at.ruler + 14, 1.5, this.height - this.at.ruler - 18);
    const text = clock(data.secondsAt(this.step));
    draw.font = "600 11px Inter, sans-serif";
    const width = draw.measureText(text).width + 12;
    const left = Math.min(right - width, Math.max(GUTTER, x - width / 2));
    draw.beginPath();
    draw.roundRect(left, this.at.ruler - 1, width, 16, 4);
    draw.fill();
    draw.fillStyle = "#0b0e13";
    draw.textAlign = "center";
    draw.textBaseline = "middle";
    draw.fillText(text, left + width / 2, this.at.ruler + 7.5);
  }

  // Names of the curves in the gutter, each with its value at the step.
  drawValues(draw) {
    const { data } = this;
    const i = data.indexOf(this.step);
    const size = data.actionNames.length;
    draw.textBaseline = "middle";
    for (const row of this.rows) {
      row.names.forEach((name, n) => {
        const y = row.y + ((n + 0.5) * row.height) / row.names.length;
        draw.textAlign = "left";
        draw.font = "450 11px Inter, sans-serif";
        draw.fillStyle = row.kind === "curve" && row.dims.length > 1 ? row.colors[n] : this.color("muted");
        draw.fillText(name, 14, y);
        if (i === null || row.kind === "success") return;
        const v = row.kind === "confidence" ? data.confidence[i] : data.action[i * size + row.dims[n]];
        draw.textAlign = "right";
        draw.fillStyle = this.color("ink");
        draw.fillText(Number.isFinite(v) ? v.toFixed(2).replace("-", "−") : "–", GUTTER - 12, y);
      });
    }
  }

  // Hearing

  listen() {
    let drag = null;
    const at = (event) => {
      const box = this.element.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const clamp = (step) => Math.min(this.data.steps - 1, Math.max(0, Math.floor(step)));
    const overview = (x) => {
      const span = this.view[1] - this.view[0];
      const step = ((x - GUTTER) / (this.width - GUTTER - RIGHT)) * this.data.steps;
      if (span > this.data.steps - 0.5) this.hear.seek(clamp(step));
      else this.setView(step - span / 2, span);
    };
    this.element.addEventListener("pointerdown", (event) => {
      if (!this.data || event.button !== 0 || event.target.closest(".chooser")) return;
      const [x, y] = at(event);
      if (x < GUTTER - 4) return;
      this.element.setPointerCapture(event.pointerId);
      const step = clamp(this.stepAt(x));
      const where = y < this.at.ruler - 2 ? "overview" : y >= this.at.labels - 4 && y <= this.at.live + ROWS.live + 2 ? "labels" : "ruler";
      drag = { where, step, moved: false, x };
      if (where === "overview") overview(x);
      else if (where === "labels" && event.shiftKey && this.selection) { drag.step = step < this.selection[0] ? this.selection[1] : this.selection[0]; this.select(drag.step, step); drag.moved = true; }
      else this.hear.seek(step);
    });
    this.element.addEventListener("pointermove", (event) => {
      if (!this.data) return;
      const [x, y] = at(event);
      if (!drag) { this.showTip(x, y); return; }
      const step = clamp(this.stepAt(x));
      if (drag.where === "overview") overview(x);
      else if (drag.where === "ruler") this.hear.seek(step);
      else if (drag.moved || Math.abs(x - drag.x) > 3) { drag.moved = true; this.select(drag.step, step); this.hear.seek(step); }
      if (drag.moved || drag.where !== "labels") this.tip.hidden = true;
    });
    const end = () => {
      if (drag && drag.where === "labels" && !drag.moved) this.select(null);
      drag = null;
    };
    this.element.addEventListener("pointerup", end);
    this.element.addEventListener("pointercancel", end);
    this.element.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    this.element.addEventListener("dblclick", (event) => {
      const [x, y] = at(event);
      if (!this.data || y < this.at.labels || y > this.at.live) return;
      const step = clamp(this.stepAt(x)); // the whole run
      const { labels } = this.data;
      let first = step, last = step;
      while (first > 0 && labels[first - 1] === labels[step]) first--;
      while (last < this.data.steps - 1 && labels[last + 1] === labels[step]) last++;
      this.select(first, last);
    });
    this.element.addEventListener("wheel", (event) => {
      if (!this.data) return;
      event.preventDefault();
      const [x] = at(event);
      const span = this.view[1] - this.view[0];
      if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.setView(this.view[0] + ((event.deltaX || event.deltaY) / 800) * span, span);
      else this.zoom(Math.exp(event.deltaY / 500), Math.max(this.view[0], this.stepAt(x)));
    }, { passive: false });
  }

  showTip(x, y) {
    if (x < GUTTER || x > this.width - RIGHT || y < this.at.labels - 12 || y > this.at.live + ROWS.live) { this.tip.hidden = true; return; }
    const step = Math.min(this.data.steps - 1, Math.max(0, Math.floor(this.stepAt(x))));
    const { labels, live, relabelled, given } = this.data;
    const why = given[step] >= 0 ? `, by a reviewer (was ${LABELS[relabelled[step]]})` : labels[step] !== live[step] ? `, recorded as ${LABELS[live[step]]}` : "";
    const takeover = this.data.takeovers.includes(step) ? " · takeover" : "";
    this.tip.textContent = `step ${step} · ${clock(this.data.secondsAt(step))} · ${LABELS[labels[step]]}${why}${takeover}`;
    this.tip.hidden = false;
    this.tip.style.left = `${Math.min(x + 12, this.width - this.tip.offsetWidth - 8)}px`;
    this.tip.style.top = `${this.at.labels - 34}px`;
  }

  // Where the selection is, for what is shown beside it.
  selectionBox() {
    if (!this.selection) return null;
    return { left: this.x(this.selection[0]), right: this.x(this.selection[1] + 1), top: this.at.labels + ROWS.labels + 6 };
  }
}
