// One episode: cameras, timeline, and what people make of it.

import { LABELS, Refused, ask, f32, i32, i8, store, u8 } from "/static/api.js";
import { ago, clock, dayName, duration, h, icon, key, percent, plural, toast } from "/static/dom.js";
import { ListPage, balance, outcomePill, status } from "/static/list.js";
import { Player } from "/static/player.js";
import { Timeline } from "/static/timeline.js";

const SPEEDS = [0.25, 0.5, 1, 2, 4, 8];
const POLL_MS = 4000;

// Arrays of an episode, by control step (labels) and by recorded step (the others).
class Data {
  constructor(tracks) {
    const { action_names: names } = tracks;
    Object.assign(this, {
      actionNames: names, hz: tracks.control_hz, live: u8(tracks.live), sequences: i32(tracks.sequences), seconds: f32(tracks.seconds), takeovers: tracks.takeovers,
      action: f32(tracks.action), requested: f32(tracks.requested), confidence: f32(tracks.confidence), success: u8(tracks.success), limited: u8(tracks.limited), reason: u8(tracks.reason),
    });
    this.steps = this.live.length;
    this.count = this.sequences.length;
    this.index = new Map(Array.from(this.sequences, (sequence, i) => [sequence, i]));
  }

  setLabels(answer) {
    Object.assign(this, { labels: u8(answer.labels), relabelled: u8(answer.relabelled), given: i8(answer.given) });
  }

  indexOf(step) {
    return this.index.get(Math.floor(step)) ?? null;
  }

  // First recorded step at or after a control step.
  indexFrom(step) {
    let low = 0, high = this.count;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.sequences[middle] < step) low = middle + 1; else high = middle;
    }
    return low;
  }

  secondsAt(step) {
    const i = this.indexFrom(step);
    if (i < this.count && this.sequences[i] === step) return this.seconds[i];
    if (i === 0 || this.count < 2) return Math.max(0, (step - this.sequences[0]) / this.hz + this.seconds[0]);
    const before = this.seconds[i - 1] + (step - this.sequences[i - 1]) / this.hz;
    return i < this.count ? Math.min(before, this.seconds[i]) : before;
  }

  stepOfSeconds(seconds) {
    let low = 0, high = this.count - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.seconds[middle] < seconds - 1e-6) low = middle + 1; else high = middle;
    }
    return this.sequences[low] + (seconds - this.seconds[low]) * this.hz;
  }

  labelCounts() {
    const counts = Object.fromEntries(LABELS.map((name) => [name, 0]));
    for (const sequence of this.sequences) counts[LABELS[this.labels[sequence]]]++;
    return counts;
  }
}

function words(edit, edits) {
  if (edit.kind === "label") {
    const steps = edit.first === edit.last ? `step ${edit.first}` : `${edit.first}–${edit.last}`;
    return edit.label === null ? [`${steps} as recorded`] : [`${steps} `, h("b", { className: `ink-${edit.label}` }, edit.label)];
  }
  if (edit.kind === "outcome") return edit.outcome === null ? ["outcome as recorded"] : [`outcome: ${edit.outcome}`];
  if (edit.kind === "exclude") return [edit.exclude ? "excluded" : "taken back in"];
  if (edit.kind === "note") return [edit.note ? `“${edit.note.length > 60 ? `${edit.note.slice(0, 60)}…` : edit.note}”` : "note removed"];
  if (edit.kind === "reviewed") return [edit.reviewed ? "reviewed" : "to be reviewed again"];
  const undone = edits[edit.edit];
  return undone.kind === "undo" ? ["redid ", words(edits[undone.edit], edits)] : ["undid ", words(undone, edits)];
}

export class EpisodePage {
  constructor(episodeKey) {
    this.key = episodeKey;
    ListPage.current = episodeKey;
    this.step = 0;
    this.playing = false;
    this.speed = 1;
    this.saving = Promise.resolve();
    this.head = h("div", { className: "episode-head" });
    this.side = h("aside", { className: "side" });
    this.cameras = h("div", { className: "cameras" });
    this.transport = h("div", { className: "transport" });
    this.timeline = new Timeline({ seek: (step) => { this.pause(); this.seek(step); }, select: (selection) => this.showChooser(selection) });
    this.stage = h("div", { className: "stage" }, this.cameras, this.transport, this.timeline.element);
    this.element = h("div", { className: "episode-page" }, this.head, this.stage, this.side);
  }

  async open() {
    this.showHead();
    this.side.replaceChildren(h("section", {}, h("p", { className: "hint" }, "Reading the bag…")));
    const row = store.rows.get(this.key);
    if (row?.state === "ready") this.beginFrames(row);
    for (;;) {
      const answer = await ask(`/api/episodes/${this.key}?k=${store.k}`);
      if (this.closed) return;
      store.put(answer.row);
      this.showHead();
      if (answer.row.state === "broken") return this.showBroken(answer.row);
      if (answer.status === 200) return this.begin(answer);
      if (answer.cameras?.length && !this.player) this.beginFrames({ ...answer.row, cameras: answer.cameras });
      await new Promise((done) => setTimeout(done, 150));
    }
  }

  close() {
    this.closed = true;
    this.pause();
    this.saveNote?.();
    clearInterval(this.polls);
    this.player?.close();
    this.timeline.close();
  }

  showBroken(row) {
    this.stage.replaceChildren(h("div", { className: "broken" }, h("div", {}, h("h2", {}, "This bag cannot be read"), h("p", {}, row.problem), h("p", { className: "hint" }, "Training never uses it, and it was left as it is. What can be saved of it, `hapo recover` saves."))));
    this.side.replaceChildren(h("section", {}, h("h3", {}, "Bag"), h("p", {}, row.folder), h("p", { className: "hint" }, row.problem_name)));
  }

  // The first image does not wait for the bag to be read.
  beginFrames(row) {
    const cameras = Object.fromEntries(row.cameras.map((name) => [name, [1, 1]]));
    this.player = new Player(this.key, row.version, cameras);
    this.cameras.replaceWith(this.player.element);
    this.cameras = this.player.element;
    this.player.show(row.first_step ?? 0);
  }

  begin(answer) {
    this.info = answer;
    this.data = new Data(answer.tracks);
    this.take(answer);
    if (!this.player) this.beginFrames(answer.row);
    this.timeline.setData(this.data);
    this.showTransport();
    this.step = this.data.sequences[0];
    this.seek(this.step);
    this.polls = setInterval(() => this.poll(), POLL_MS);
    this.element.dataset.ready = "yes";
  }

  // Labels and review as the server has them now.
  take(answer) {
    this.review = answer.review;
    this.data.setLabels(answer);
    store.put(answer.row);
    this.showHead();
    this.showSide();
    this.timeline.drawBase();
    if (this.player) this.player.mark(this.data.labels[this.step]);
  }

  async kChanged() {
    if (!this.data) return;
    this.take(await ask(`/api/episodes/${this.key}/labels?k=${store.k}`));
  }

  async poll() {
    if (document.hidden || this.busy) return;
    const answer = await ask(`/api/episodes/${this.key}/labels?k=${store.k}`).catch(() => null);
    if (!answer || this.closed || this.busy || answer.review.revision === this.review.revision && answer.review.problem === this.review.problem) return;
    const others = answer.review.edits.slice(this.review.revision).map((edit) => edit.by);
    this.take(answer);
    if (others.length) toast(`${[...new Set(others)].join(", ")} edited this episode: what you see is up to date.`);
  }

  // Save edits, one request after the other.
  save(...edits) {
    this.saving = this.saving.then(() => this.send(edits));
    return this.saving;
  }

  async send(edits) {
    this.busy = true;
    try {
      this.take(await ask(`/api/episodes/${this.key}/edits?k=${store.k}`, { seen: this.review.revision, by: store.reviewer, edits }));
      return true;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.status === 409 && error.answer.review) {
        this.take(error.answer);
        this.conflict = { text: error.message, edits };
        this.showSide();
      } else toast(error.message, "bad");
      return false;
    } finally {
      this.busy = false;
    }
  }

  // Head

  showHead() {
    const row = store.rows.get(this.key);
    const keys = ListPage.filtered().map((each) => each.key);
    const at = keys.indexOf(this.key);
    const go = (to) => to !== undefined && (location.hash = `e/${to}`);
    this.goNext = () => go(keys[at + 1]);
    this.goPrevious = () => go(at > 0 ? keys[at - 1] : undefined);
    this.head.replaceChildren(...[
      h("button", { className: "ghost", title: "Back to the list (Esc)", on: { click: () => (location.hash = "") } }, icon("back"), "Episodes"),
      h("h1", {}, row ? row.instruction || row.task || row.folder : ""),
      row && row.episode_id !== row.instruction && h("span", { className: "id" }, row.episode_id ?? row.folder),
      row?.state === "ready" && outcomePill(row),
      ...(row?.flags ?? []).map(([name, text]) => h("span", { className: "tag", title: text }, name)),
      h("span", { className: "grow" }),
      at >= 0 && h("span", { className: "faint number" }, `${at + 1} of ${keys.length}`),
      h("button", { className: "ghost", disabled: at <= 0, title: "Previous episode (K)", on: { click: () => this.goPrevious() } }, icon("back")),
      h("button", { className: "ghost", disabled: at < 0 || at + 1 >= keys.length, title: "Next episode (J)", on: { click: () => this.goNext() } }, icon("next")),
    ].filter(Boolean));
  }

  // Transport

  showTransport() {
    const button = (name, title, act) => h("button", { title, ariaLabel: title, on: { click: act } }, icon(name));
    this.playButton = h("button", { className: "play", title: "Play (Space)", ariaLabel: "Play", on: { click: () => this.toggle() } }, icon("play"));
    this.time = h("span", { className: "time number" });
    this.stepText = h("span", { className: "step number" });
    this.why = h("span", { className: "why" });
    this.speeds = h("select", { title: "Speed (, and .)", ariaLabel: "Speed", on: { change: () => { this.speed = Number(this.speeds.value); this.speeds.blur(); } } }, SPEEDS.map((each) => h("option", { value: each, selected: each === 1 }, `${each}×`)));
    this.transport.replaceChildren(
      button("first", "To the beginning (Home)", () => this.seek(0)), button("back", "One step back (←)", () => this.move(-1)), this.playButton,
      button("next", "One step on (→)", () => this.move(1)), button("last", "To the end (End)", () => this.seek(this.data.steps - 1)), this.speeds,
      this.time, this.stepText, this.why, h("span", { className: "grow" }),
      h("button", { title: "Takeover before (Shift T)", className: "wide", on: { click: () => this.takeover(-1) } }, icon("flag")),
      h("span", { className: "faint number" }, plural(this.data.takeovers.length, "takeover")),
      button("undo", "Undo (U)", () => this.undo()), button("redo", "Redo (Shift U)", () => this.redo()),
    );
  }

  // A step that was recorded, nearest to the one asked for.
  recorded(step, direction = 1) {
    const i = this.data.indexFrom(step);
    if (i >= this.data.count) return this.data.sequences[this.data.count - 1];
    if (direction < 0 && this.data.sequences[i] !== step && i > 0) return this.data.sequences[i - 1];
    return this.data.sequences[i];
  }

  seek(step, direction = 1) {
    if (!this.data) return;
    this.position = Math.min(this.data.steps - 1, Math.max(0, step));
    this.show(this.recorded(Math.floor(this.position), direction));
  }

  // Played fast, not every step is shown: these are, so that they can be asked for in time.
  get stride() {
    return this.playing ? Math.max(1, Math.round(this.speed / 2)) : 1;
  }

  strided(step) {
    const i = Math.min(this.data.count - 1, this.data.indexFrom(Math.floor(step)));
    return this.data.sequences[i - (i % this.stride)];
  }

  show(step) {
    this.step = step;
    const { stride } = this;
    const i = this.data.indexOf(this.step);
    const ahead = [];
    for (let n = 1; n <= 14; n++) if (i + n * stride < this.data.count) ahead.push(this.data.sequences[i + n * stride]);
    if (!this.playing && i > 0) ahead.unshift(this.data.sequences[i - 1]);
    this.player.show(this.step, ahead);
    this.player.mark(this.data.labels[this.step]);
    this.timeline.setStep(this.step);
    this.time.replaceChildren(clock(this.data.secondsAt(this.step)), h("span", {}, ` / ${clock(this.data.secondsAt(this.data.steps - 1))}`));
    this.stepText.textContent = `step ${this.step} / ${this.data.steps - 1}`;
    const limited = this.data.limited[i] ? "Limited. " : "";
    this.why.textContent = limited + (store.session.reasons[this.data.reason[i]] ?? "");
    this.element.dataset.step = this.step;
  }

  move(by) {
    this.pause();
    const i = this.data.indexOf(this.step) + by;
    this.seek(this.data.sequences[Math.min(this.data.count - 1, Math.max(0, i))], by);
  }

  takeover(direction) {
    const steps = [...this.data.takeovers];
    const to = direction > 0 ? steps.find((step) => step > this.step) : steps.reverse().find((step) => step < this.step);
    if (to !== undefined) { this.pause(); this.seek(to); }
  }

  toggle() {
    if (this.playing) return this.pause();
    this.playing = true;
    if (this.step >= this.data.sequences[this.data.count - 1]) this.seek(0);
    this.playButton.replaceChildren(icon("pause"));
    let last = performance.now();
    const tick = (now) => {
      if (!this.playing || this.closed) return;
      const elapsed = Math.min(0.25, (now - last) / 1000);
      last = now;
      // Images that are not there yet are waited for: it plays slower rather than blind.
      if (this.player.isThere(this.step)) {
        const to = this.position + elapsed * this.data.hz * this.speed;
        if (to >= this.data.steps - 1) { this.pause(); return this.seek(this.data.steps - 1); }
        const before = this.strided(this.position);
        this.position = to;
        if (this.strided(to) !== before) this.show(this.strided(to));
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    this.playButton.replaceChildren(icon("play"));
  }

  // Edits

  label(name) {
    const selection = this.timeline.selection ?? [this.step, this.step];
    this.save({ kind: "label", first: selection[0], last: selection[1], label: name });
  }

  outcome(name) {
    const same = store.rows.get(this.key).outcome === name && this.review.outcome !== null;
    this.save({ kind: "outcome", outcome: same ? null : name });
  }

  undo() {
    if (this.review.undo !== null) this.save({ kind: "undo", edit: this.review.undo });
  }

  redo() {
    if (this.review.redo !== null) this.save({ kind: "undo", edit: this.review.redo });
  }

  async reviewed() {
    const done = !this.review.reviewed;
    const next = this.goNext;
    if (await this.save({ kind: "reviewed", reviewed: done }) && done) next();
  }

  showChooser(selection) {
    this.chooser?.remove();
    this.showSelection?.();
    if (!selection || !this.data) return;
    const box = this.timeline.selectionBox();
    const count = selection[1] - selection[0] + 1;
    this.chooser = h("div", { className: "chooser" },
      h("span", { className: "number" }, `${plural(count, "step")} · ${(count / this.data.hz).toFixed(2)} s`),
      ["policy", "human", "undesirable", "none"].map((name) => h("button", { "data-label": name, on: { click: () => this.label(name) } }, h("i", { className: `swatch bg-${name}`, style: { margin: 0 } }), name, key(LABELS.indexOf(name)))),
      h("button", { title: "As recorded (Backspace)", on: { click: () => this.label(null) } }, "as recorded"),
      h("button", { className: "ghost", title: "Drop the selection (Esc)", on: { click: () => this.timeline.select(null) } }, icon("cross")));
    this.timeline.element.append(this.chooser);
    const width = this.chooser.offsetWidth;
    this.chooser.style.left = `${Math.max(8, Math.min(this.timeline.width - width - 8, (box.left + box.right - width) / 2))}px`;
    this.chooser.style.top = `${box.top + 14}px`;
  }

  // Side

  showSide() {
    const row = store.rows.get(this.key);
    const { review, data, info } = this;
    if (this.side.contains(document.activeElement) && document.activeElement.tagName === "TEXTAREA") this.saveNote?.();
    const problem = review.problem && h("div", { className: "notice bad" }, review.problem, h("div", { className: "line" }, "Nothing can be saved here until it is moved away, and training leaves the episode out."));
    const disabled = Boolean(review.problem);
    const conflict = this.conflict && h("div", { className: "notice", id: "conflict" }, this.conflict.text,
      h("div", { className: "line" },
        h("button", { on: { click: () => { const { edits } = this.conflict; this.conflict = null; this.save(...edits); } } }, "Save mine after theirs"),
        h("button", { className: "ghost", on: { click: () => { this.conflict = null; this.showSide(); } } }, "Drop mine")));
    const outcome = (name, text, letter) => h("button", { className: name, disabled, ariaPressed: row.outcome === name, on: { click: () => this.outcome(name) } }, icon(name === "success" ? "check" : "cross"), text, key(letter));
    const kValue = h("b", { className: "number" }, `K = ${store.k}`);
    const kRange = h("input", { type: "range", min: 0, max: Math.max(40, store.k), value: store.k, ariaLabel: "K", on: { input: () => { kValue.textContent = `K = ${kRange.value}`; }, change: () => dispatchEvent(new CustomEvent("set-k", { detail: Number(kRange.value) })) } });
    const counts = data.labelCounts();
    const note = h("textarea", { rows: 2, placeholder: "What is worth knowing about it", disabled, value: review.note, maxLength: 10000, id: "note", on: { change: () => this.saveNote(), keydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) note.blur(); } } });
    this.saveNote = () => { if (note.value !== this.review.note && !note.disabled) { const text = note.value; this.review.note = text; this.save({ kind: "note", note: text }); } };
    const [, look, text] = status(row);
    const edits = review.edits.map((edit, number) => ({ ...edit, number })).reverse();
    this.side.replaceChildren(
      h("section", {}, [
        problem, conflict,
        h("div", { className: "outcomes" }, outcome("success", "Success", "Y"), outcome("failure", "Failure", "N")),
        row.outcome !== row.recorded_outcome && h("p", { className: "hint" }, `Recorded as ${row.recorded_outcome}. Press again for that.`),
        row.outcome === "discarded" && h("p", { className: "hint" }, "Discarded by the operator: not used, unless you give it an outcome."),
        h("div", { className: "line" },
          h("button", { className: "exclude grow", disabled, ariaPressed: review.excluded, on: { click: () => this.save({ kind: "exclude", exclude: !this.review.excluded }) } }, review.excluded ? "Excluded" : "Exclude", key("X")),
          h("button", { className: review.reviewed ? "grow" : "primary grow", disabled, id: "reviewed", on: { click: () => this.reviewed() } }, icon("check"), review.reviewed ? "Reviewed" : "Mark reviewed")),
        h("span", { className: `status ${look}` }, h("i", { className: "dot" }), row.used ? `${text}. Training uses it.` : `${text}. Training leaves it out.`),
      ].filter(Boolean)),
      h("section", {}, h("h3", {}, "Labels"),
        row.source === "deployment" ? h("div", { className: "k-line", title: "Steps before a takeover that are undesirable" }, h("span", { className: "muted" }, "before a takeover"), kRange, kValue) : h("p", { className: "hint" }, "A demonstration: every step is the expert's."),
        h("div", {}, balance(counts)),
        h("p", { className: "hint" }, "Drag over the timeline to select steps, then choose a label. What you set stays, whatever K is.")),
      h("section", {}, h("h3", {}, "Note"), note),
      h("section", {}, h("div", { className: "line" }, h("h3", { className: "grow" }, "History"), h("span", { className: "faint" }, review.edits.length || "")),
        edits.length ? h("ul", { className: "history" }, edits.map((edit) => h("li", { className: edit.valid ? "" : "void" },
          h("span", { className: "avatar", title: edit.by }, edit.by.slice(0, 1).toUpperCase()),
          h("span", {}, h("span", { className: "what" }, words(edit, review.edits)), h("small", {}, `${edit.by}, ${ago(edit.at)}`)),
          edit.valid && edit.kind !== "undo" ? h("button", { className: "ghost", title: "Undo this edit", on: { click: () => this.save({ kind: "undo", edit: edit.number }) } }, icon("undo")) : h("span")))) : h("p", { className: "hint" }, "No one has changed anything yet. The bag itself never changes.")),
      h("section", {}, h("h3", {}, "Episode"), h("dl", { className: "facts" }, this.facts(row, info).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]))),
    );
    if (this.transport.childElementCount) {
      for (const [title, number] of [["Undo (U)", review.undo], ["Redo (Shift U)", review.redo]]) this.transport.querySelector(`[title="${title}"]`).disabled = number === null || disabled;
    }
  }

  facts(row, info) {
    const facts = [
      ["recorded", `${dayName(row.day)}, ${row.recorded_at.slice(11, 16)}`], ["source", row.source], ["task", row.task], ["length", `${plural(row.steps, "step")}, ${duration(row.seconds)}`],
      ["takeovers", row.source === "deployment" ? String(row.takeovers) : "–"], ["intervention", percent(row.intervention_ratio)], ["policy", h("span", { className: "mono" }, row.policy_versions.join(", ") || "–")],
      ["seed", String(row.seed)], ["cameras", Object.entries(info.tracks.cameras).map(([name, size]) => `${name} ${size[1]}×${size[0]}`).join(", ") || "–"],
      ["ended", info.tracks.note || "–"], ["bag", row.folder], ["SHA-256", h("span", { className: "mono", title: info.tracks.bag_hash }, `${info.tracks.bag_hash.slice(0, 16)}…`)],
    ];
    return facts.concat(row.flags);
  }

  // Keys

  keyed(event) {
    if (event.key === "Escape") {
      if (this.timeline.selection) this.timeline.select(null);
      else location.hash = "";
      return;
    }
    if (event.key === "j") return this.goNext?.();
    if (event.key === "k") return this.goPrevious?.();
    if (!this.data) return;
    const control = event.ctrlKey || event.metaKey;
    if (control && event.key.toLowerCase() === "z") { event.preventDefault(); return event.shiftKey ? this.redo() : this.undo(); }
    if (control) return;
    const { timeline } = this;
    const select = (first, last) => timeline.select(Math.min(first, last), Math.max(first, last));
    const speed = (by) => { this.speed = SPEEDS[Math.min(SPEEDS.length - 1, Math.max(0, SPEEDS.indexOf(this.speed) + by))]; this.speeds.value = this.speed; };
    const acts = {
      " ": () => this.toggle(), ArrowLeft: () => this.move(event.shiftKey ? -10 : -1), ArrowRight: () => this.move(event.shiftKey ? 10 : 1), Home: () => this.seek(0), End: () => this.seek(this.data.steps - 1, -1),
      t: () => this.takeover(1), T: () => this.takeover(-1), ",": () => speed(-1), ".": () => speed(1),
      "[": () => select(this.step, timeline.selection && timeline.selection[1] >= this.step ? timeline.selection[1] : this.step),
      "]": () => select(timeline.selection && timeline.selection[0] <= this.step ? timeline.selection[0] : this.step, this.step),
      0: () => this.label("undesirable"), 1: () => this.label("policy"), 2: () => this.label("human"), 3: () => this.label("none"), Backspace: () => this.label(null), Delete: () => this.label(null),
      y: () => this.outcome("success"), n: () => this.outcome("failure"), x: () => this.save({ kind: "exclude", exclude: !this.review.excluded }), c: () => document.getElementById("note").focus(),
      u: () => this.undo(), U: () => this.redo(), Enter: () => this.reviewed(), "+": () => timeline.zoom(0.6), "=": () => timeline.zoom(0.6), "-": () => timeline.zoom(1 / 0.6), f: () => timeline.fit(),
    };
    if (!(event.key in acts) || (event.key === "Enter" && event.target.tagName === "BUTTON")) return;
    event.preventDefault();
    acts[event.key]();
  }
}
