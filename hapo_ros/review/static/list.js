// The episodes: totals, filters, rows.

import { LABELS, ask, store } from "/static/api.js";
import { ago, dayName, duration, h, icon, percent, plural } from "/static/dom.js";

const COLORS = ["--undesirable", "--policy", "--human", "--none"];
const SORTS = {
  recorded: (row) => row.recorded_at, outcome: (row) => row.outcome ?? "", length: (row) => row.seconds ?? -1, takeovers: (row) => row.takeovers ?? -1,
  ratio: (row) => row.intervention_ratio ?? -1, policy: (row) => (row.policy_versions ?? []).join(), status: (row) => status(row)[0],
};

// What a row's status is called, and how it looks.
export function status(row) {
  if (row.state === "broken") return ["broken", "out", "Broken"];
  if (row.review.problem) return ["problem", "out", "Review unreadable"];
  if (row.review.excluded) return ["excluded", "out", "Excluded"];
  if (row.review.reviewed) return ["reviewed", "done", "Reviewed"];
  if (row.review.revision) return ["begun", "begun", "Edited"];
  return ["open", "open", "To review"];
}

export const outcomePill = (row) =>
  h("span", { className: `pill ${row.outcome} ${row.outcome !== row.recorded_outcome ? "changed" : ""}`, title: row.outcome !== row.recorded_outcome ? `Recorded as ${row.recorded_outcome}` : "" },
    row.outcome === "success" ? icon("check") : row.outcome === "failure" ? icon("cross") : null, row.outcome[0].toUpperCase() + row.outcome.slice(1));

export function balance(labels) {
  const total = Math.max(1, Object.values(labels).reduce((sum, each) => sum + each, 0));
  const order = ["policy", "human", "undesirable", "none"];
  return [
    h("div", { className: "balance-bar" }, order.filter((name) => labels[name]).map((name) => h("i", { className: `bg-${name}`, title: `${name} ${labels[name]}`, style: { width: `${(100 * labels[name]) / total}%` } }))),
    h("div", { className: "legend" }, order.map((name) => h("span", {}, h("i", { className: `swatch bg-${name}` }), `${name} `, h("b", {}, labels[name])))),
  ];
}

// The policy, the human, the K undesirable steps: a digit a cell.
export function drawStrip(canvas, cells) {
  const style = getComputedStyle(document.documentElement);
  const colors = COLORS.map((name) => style.getPropertyValue(name));
  canvas.width = cells.length;
  canvas.height = 1;
  const draw = canvas.getContext("2d");
  for (let i = 0; i < cells.length; i++) {
    draw.fillStyle = colors[cells[i]];
    draw.fillRect(i, 0, 1, 1);
  }
  canvas.style.imageRendering = "pixelated";
}

export class ListPage {
  static settings = { words: "", day: "", outcome: "", status: "", source: "", version: "", sort: "recorded", down: true };
  static current = "";

  constructor() {
    this.rows = h("div", { className: "rows", tabIndex: 0, role: "list", ariaLabel: "Episodes" });
    this.tiles = h("div", { className: "tiles" });
    this.filters = h("div", { className: "filters" });
    this.columns = h("div", { className: "columns" });
    this.element = h("div", { className: "list-page" }, this.tiles, this.filters, this.columns, this.rows);
    this.shown = new Map();
    this.changed = () => this.update();
  }

  open() {
    store.addEventListener("rows", this.changed);
    this.update();
    this.elementOf(ListPage.current)?.scrollIntoView({ block: "center" });
    this.rows.focus({ preventScroll: true });
  }

  close() {
    store.removeEventListener("rows", this.changed);
  }

  search(words) {
    ListPage.settings.words = words;
    this.update();
  }

  set(name, value) {
    ListPage.settings[name] = value;
    this.update();
  }

  static filtered() {
    const { words, day, outcome, status: wanted, source, version, sort, down } = ListPage.settings;
    const parts = words.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = store.list().filter((row) => {
      if (day && row.day !== day) return false;
      if (outcome && row.outcome !== outcome) return false;
      if (source && row.source !== source) return false;
      if (version && !(row.policy_versions ?? []).includes(version)) return false;
      if (wanted === "flagged" ? !(row.flags.length || row.state === "broken" || row.review.problem) : wanted && status(row)[0] !== wanted && !(wanted === "open" && status(row)[0] === "begun")) return false;
      const text = [row.folder, row.episode_id, row.task, row.instruction, row.review.note, row.problem_name, ...row.flags.map((flag) => flag[0]), ...(row.policy_versions ?? [])].join(" ").toLowerCase();
      return parts.every((part) => text.includes(part));
    });
    const by = SORTS[sort];
    kept.sort((a, b) => (by(a) < by(b) ? -1 : by(a) > by(b) ? 1 : a.folder < b.folder ? -1 : 1));
    return down ? kept.reverse() : kept;
  }

  update() {
    const kept = ListPage.filtered();
    this.keys = kept.map((row) => row.key);
    this.showTiles(kept);
    this.showFilters();
    this.showColumns();
    const next = new Map();
    for (const row of kept) {
      const known = this.shown.get(row.key);
      next.set(row.key, known?.row === row ? known : { row, element: this.rowElement(row) });
    }
    const elements = [...next.values()].map((each) => each.element);
    const same = elements.length === this.rows.children.length && elements.every((each, i) => this.rows.children[i] === each);
    if (!same || !elements.length) this.rows.replaceChildren(...(elements.length ? elements : [this.emptyElement()]));
    this.shown = next;
    this.mark();
  }

  emptyElement() {
    if (store.keys.length) return h("div", { className: "empty" }, h("h2", {}, "No episode matches"), h("p", {}, "Change the filters or the search."), h("p", {}, h("button", { on: { click: () => this.clear() } }, "Show all")));
    return h("div", { className: "empty" }, h("h2", {}, "There are no episodes here yet"), h("p", {}, `Looking at ${store.session.folders.join(", ")}. New ones appear by themselves.`));
  }

  clear() {
    Object.assign(ListPage.settings, { words: "", day: "", outcome: "", status: "", source: "", version: "" });
    document.getElementById("search").value = "";
    this.update();
  }

  showTiles(kept) {
    const ready = kept.filter((row) => row.state === "ready");
    const used = ready.filter((row) => !row.review.excluded && row.outcome !== "discarded");
    const deployed = used.filter((row) => row.source === "deployment");
    const sum = (rows, value) => rows.reduce((total, row) => total + value(row), 0);
    const won = deployed.filter((row) => row.outcome === "success").length;
    const executed = sum(deployed, (row) => row.executed_steps);
    const labels = Object.fromEntries(LABELS.map((name) => [name, sum(used, (row) => row.labels[name])]));
    const left = ready.filter((row) => ["open", "begun"].includes(status(row)[0])).length;
    const tile = (value, small, name) => h("div", { className: "tile" }, h("b", {}, value, small && h("small", {}, small)), h("span", {}, name));
    this.tiles.replaceChildren(
      tile(kept.length, kept.length < store.keys.length ? `of ${store.keys.length}` : "", ListPage.settings.day ? dayName(ListPage.settings.day) : "episodes"),
      tile(deployed.length ? percent(won / deployed.length) : "–", deployed.length ? `${won} of ${deployed.length}` : "", "success"),
      tile(executed ? percent(sum(deployed, (row) => row.human_steps) / executed) : "–", "", "intervention ratio"),
      tile(sum(used, (row) => row.takeovers), "", "takeovers"),
      tile(duration(sum(used, (row) => row.seconds)), "", "on the robot"),
      tile(left, "", "to review"),
      h("div", { className: "tile balance" }, balance(labels)),
    );
  }

  showFilters() {
    const rows = store.list();
    const { settings } = ListPage;
    const count = (test) => rows.filter(test).length;
    const segments = (name, choices) => h("div", { className: "segments", role: "group", ariaLabel: name },
      choices.map(([value, text, test]) => h("button", { ariaPressed: settings[name] === value, on: { click: () => this.set(name, value) } }, text, test && h("i", {}, count(test)))));
    const select = (name, all, values, words = (value) => value) => values.length > 1 && h("select", { ariaLabel: name, on: { change: (event) => this.set(name, event.target.value) } },
      h("option", { value: "" }, all), values.map((value) => h("option", { value, selected: settings[name] === value }, words(value))));
    const unique = (values) => [...new Set(values)].filter(Boolean);
    const filtered = ["words", "day", "outcome", "status", "source", "version"].some((name) => settings[name]);
    this.filters.replaceChildren(...[
      segments("status", [["", "All"], ["open", "To review", (row) => row.state === "ready" && ["open", "begun"].includes(status(row)[0])], ["reviewed", "Reviewed", (row) => status(row)[0] === "reviewed"], ["excluded", "Excluded", (row) => status(row)[0] === "excluded"],
        ["flagged", "Flagged", (row) => row.flags.length || row.state === "broken" || row.review.problem]]),
      segments("outcome", [["", "Any outcome"], ["success", "Success"], ["failure", "Failure"], ...(count((row) => row.outcome === "discarded") ? [["discarded", "Discarded"]] : [])]),
      select("day", "All days", unique(rows.map((row) => row.day)).sort().reverse(), dayName),
      select("source", "Any source", unique(rows.map((row) => row.source))),
      select("version", "All policies", unique(rows.flatMap((row) => row.policy_versions ?? [])), (value) => `policy ${value.slice(0, 10)}`),
      filtered && h("button", { className: "ghost", on: { click: () => this.clear() } }, icon("cross"), "Clear"),
    ].filter(Boolean));
  }

  showColumns() {
    const { sort, down } = ListPage.settings;
    const column = (name, text, className = "") => h("button", {
      className, ariaSort: sort === name ? (down ? "descending" : "ascending") : null,
      on: { click: () => { ListPage.settings.down = sort === name ? !down : true; this.set("sort", name); } },
    }, text, sort === name ? (down ? " ↓" : " ↑") : "");
    this.columns.replaceChildren(
      h("span", {}), column("recorded", "Episode"), h("span", {}, "Who acted, over time"), column("outcome", "Outcome"), column("length", "Length", "right"),
      column("takeovers", "Takeovers", "right optional"), column("ratio", "Intervention", ""), column("policy", "Policy", "optional"), column("status", "Review"));
  }

  rowElement(row) {
    const [, look, words] = status(row);
    const open = () => { ListPage.current = row.key; location.hash = `e/${row.key}`; };
    const element = h("div", { className: `row ${row.review.excluded ? "excluded" : ""}`, role: "listitem", "data-key": row.key, on: { click: open } });
    const state = h("span", { className: `status ${look}`, title: row.review.by ? `${row.review.by}, ${ago(row.review.at)}` : "" }, h("i", { className: "dot" }), words);
    if (row.state !== "ready") {
      const broken = row.state === "broken";
      element.append(
        h("div", { className: "film" }, broken ? "no picture" : "reading…"),
        h("div", { className: "title" }, h("b", {}, row.folder), h("span", {}, broken ? row.problem_name : dayName(row.day))),
        h("div", { className: "problem" }, row.problem));
      return element;
    }
    const film = h("div", { className: "film" }, row.cameras.length ? h("img", { loading: "lazy", alt: "", src: `/api/episodes/${row.key}/strip?v=${row.version}`, on: { error: () => film.replaceChildren("no picture") } }) : "no camera");
    const strip = h("canvas", { className: "strip", title: LABELS.map((name) => `${name} ${row.labels[name]}`).join(", ") });
    drawStrip(strip, row.strip);
    const version = (row.policy_versions ?? []).map((each) => each.slice(0, 8)).join(", ");
    element.append(
      film,
      h("div", { className: "title" }, h("b", {}, row.instruction || row.task || row.folder), h("span", { title: row.episode_id }, `${dayName(row.day)}, ${row.recorded_at.slice(11, 16)} · ${row.episode_id}`)),
      h("div", {}, strip, h("div", { className: "under-strip" }, row.flags.map(([name, text]) => h("span", { className: "tag", title: text }, name)), row.review.problem && h("span", { className: "tag", title: row.review.problem }, "review unreadable"), row.review.note && h("span", { title: row.review.note }, `“${row.review.note}”`))),
      h("div", {}, outcomePill(row)),
      h("div", { className: "right number" }, duration(row.seconds)),
      h("div", { className: "right number optional" }, row.source === "deployment" ? row.takeovers : h("span", { className: "faint" }, "demo")),
      h("div", { className: "ratio number" }, row.intervention_ratio === null ? h("span", { className: "faint" }, "–") : [h("i", {}, h("i", { style: { width: `${100 * row.intervention_ratio}%` } })), h("span", {}, percent(row.intervention_ratio))]),
      h("div", { className: "mono faint optional", title: (row.policy_versions ?? []).join(", ") }, version),
      state);
    return element;
  }

  elementOf(key) {
    return this.shown.get(key)?.element;
  }

  mark() {
    for (const [key, { element }] of this.shown) element.classList.toggle("current", key === ListPage.current);
  }

  keyed(event) {
    const at = this.keys.indexOf(ListPage.current);
    const to = { ArrowDown: at + 1, j: at + 1, ArrowUp: at - 1, k: at - 1, Home: 0, End: this.keys.length - 1, PageDown: at + 8, PageUp: at - 8 }[event.key];
    if (to !== undefined && this.keys.length) {
      event.preventDefault();
      ListPage.current = this.keys[Math.min(this.keys.length - 1, Math.max(0, to))];
      this.mark();
      this.elementOf(ListPage.current).scrollIntoView({ block: "nearest" });
    } else if (event.key === "Enter" && at >= 0) location.hash = `e/${ListPage.current}`;
  }
}
