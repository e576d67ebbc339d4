// What all of it comes to: over time, by policy version, and what is left to do.

import { ask, store } from "/static/api.js";
import { dayName, duration, h, percent, plural, s } from "/static/dom.js";
import { ListPage, balance } from "/static/list.js";

const ORDER = ["policy", "human", "undesirable", "none"];

const text = (x, y, words, anchor = "start", className = "") => s("text", { x, y, "text-anchor": anchor, class: className }, words);
const rect = (x, y, width, height, className, title) => s("rect", { x, y, width: Math.max(0, width), height, class: className, rx: 2 }, title && s("title", {}, title));

export class DashboardPage {
  constructor() {
    this.inner = h("div", {});
    this.element = h("div", { className: "dashboard" }, this.inner);
    this.changed = () => this.update();
  }

  async open() {
    store.addEventListener("rows", this.changed);
    await this.update();
  }

  close() {
    store.removeEventListener("rows", this.changed);
  }

  kChanged() {
    return this.update();
  }

  async update() {
    const found = await ask(`/api/dashboard?k=${store.k}`);
    const { all, days, versions } = found;
    if (!all.episodes) {
      this.inner.replaceChildren(h("div", { className: "empty card wide" }, h("h2", {}, "Nothing to sum up yet"), h("p", {}, "There are no episodes in these folders.")));
      return;
    }
    this.inner.replaceChildren(
      this.totals(all),
      this.card("Over time", h("p", {}, h("span", { className: "key" }, h("i", { style: { background: "var(--accent)" } }), "success rate, 95 % interval"), h("span", { className: "key" }, h("i", { style: { background: "var(--human)" } }), "intervention ratio")), this.overTime(days)),
      this.card("By policy version", h("p", {}, "Success rate of deployments, with its 95 % interval; the dot is the intervention ratio."), this.byVersion(versions)),
      this.card("Label balance", h("p", {}, `Steps by label, K = ${store.k}, by day.`), this.labels(days)),
      this.card("Still to review", h("p", {}, all.left ? `${plural(all.left, "episode")} of ${all.episodes}. Click a day to see them.` : "Everything was reviewed."), this.left(days)),
    );
  }

  card(title, below, ...children) {
    return h("section", { className: "card" }, h("h2", {}, title), below, children);
  }

  totals(all) {
    const tile = (value, small, name) => h("div", { className: "tile" }, h("b", {}, value, small && h("small", {}, small)), h("span", {}, name));
    const [won, of, low, high] = all.success ?? [0, 0, 0, 0];
    return h("section", { className: "card wide" }, h("div", { className: "tiles", style: { padding: 0 } },
      tile(all.episodes, all.excluded ? `${all.excluded} excluded` : "", "episodes"),
      tile(of ? percent(won / of) : "–", of ? `${percent(low)} to ${percent(high)}` : "", `success of ${plural(of, "deployment")}`),
      tile(percent(all.intervention_ratio), "", "intervention ratio"), tile(all.takeovers, "", "takeovers"), tile(duration(all.seconds), "", "on the robot"), tile(all.left, "", "to review"),
      h("div", { className: "tile balance" }, balance(all.labels))));
  }

  overTime(days) {
    const shown = days.filter((day) => day.success).slice(-30);
    if (!shown.length) return h("p", { className: "hint" }, "No deployment yet.");
    const [width, height, left, bottom] = [560, 220, 42, 190];
    const x = (i) => (shown.length === 1 ? (left + width) / 2 : left + 26 + (i / (shown.length - 1)) * (width - left - 52));
    const y = (share) => bottom - share * (bottom - 10);
    const svg = s("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Success and intervention ratio by day" });
    for (const tick of [0, 0.25, 0.5, 0.75, 1]) svg.append(s("line", { class: "grid", x1: left, x2: width, y1: y(tick), y2: y(tick) }), text(left - 8, y(tick) + 4, `${100 * tick} %`, "end"));
    const rates = shown.map((day) => day.success);
    if (shown.length > 1) {
      svg.append(s("path", { class: "band", d: `M${rates.map((r, i) => `${x(i)} ${y(r[3])}`).join("L")}L${rates.map((r, i) => `${x(i)} ${y(r[2])}`).reverse().join("L")}Z` }));
      svg.append(s("path", { class: "success-line", d: `M${rates.map((r, i) => `${x(i)} ${y(r[0] / r[1])}`).join("L")}` }));
      svg.append(s("path", { class: "human-line", d: `M${shown.map((day, i) => `${x(i)} ${y(day.intervention_ratio ?? 0)}`).join("L")}` }));
    } else svg.append(s("path", { class: "whisker", d: `M${x(0)} ${y(rates[0][2])}V${y(rates[0][3])}` }));
    const every = Math.ceil(shown.length / 7);
    shown.forEach((day, i) => {
      svg.append(s("circle", { class: "success-dot", cx: x(i), cy: y(day.success[0] / day.success[1]), r: 4 }, s("title", {}, `${dayName(day.day)}: ${day.success[0]} of ${day.success[1]}`)));
      svg.append(s("circle", { class: "human-dot", cx: x(i), cy: y(day.intervention_ratio ?? 0), r: 4 }, s("title", {}, `${dayName(day.day)}: ${percent(day.intervention_ratio)} human`)));
      if (i % every === 0) svg.append(text(x(i), bottom + 20, dayName(day.day), "middle"));
    });
    return svg;
  }

  byVersion(versions) {
    const shown = versions.filter((each) => each.success).slice(-8);
    if (!shown.length) return h("p", { className: "hint" }, "No deployment yet.");
    const [width, left, right, row] = [560, 100, 452, 34];
    const x = (share) => left + share * (right - left);
    const svg = s("svg", { class: "chart", viewBox: `0 0 ${width} ${shown.length * row + 22}`, role: "img", "aria-label": "Success by policy version" });
    for (const tick of [0, 0.5, 1]) svg.append(s("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 0, y2: shown.length * row }), text(x(tick), shown.length * row + 16, `${100 * tick} %`, "middle"));
    shown.forEach((each, i) => {
      const y = i * row + row / 2;
      const [won, of, low, high] = each.success;
      svg.append(text(left - 10, y + 4, each.policy_version.slice(0, 12) || "none", "end", "ink"), rect(left, y - 8, x(won / of) - left, 16, "rate"));
      svg.append(s("path", { class: "whisker", d: `M${x(low)} ${y}H${x(high)}M${x(low)} ${y - 4}v8M${x(high)} ${y - 4}v8` }));
      svg.append(s("circle", { class: "human-dot", cx: x(each.intervention_ratio ?? 0), cy: y, r: 4 }, s("title", {}, `intervention ratio ${percent(each.intervention_ratio)}`)));
      svg.append(text(right + 14, y + 4, `${won} of ${of}`, "start", "ink"), text(width, y + 4, percent(won / of), "end"));
    });
    return svg;
  }

  labels(days) {
    const shown = days.slice(-8);
    const [width, left, row] = [560, 100, 30];
    const svg = s("svg", { class: "chart", viewBox: `0 0 ${width} ${shown.length * row}`, role: "img", "aria-label": "Steps by label and day" });
    const most = Math.max(1, ...shown.map((day) => ORDER.reduce((sum, name) => sum + day.labels[name], 0)));
    shown.forEach((day, i) => {
      let x = left;
      svg.append(text(left - 10, i * row + row / 2 + 4, dayName(day.day), "end", "ink"));
      for (const name of ORDER) {
        const wide = (day.labels[name] / most) * (width - left);
        if (wide) svg.append(rect(x, i * row + 6, Math.max(1, wide - 1), row - 12, `fill-${name}`, `${name} ${day.labels[name]}`));
        x += wide;
      }
    });
    return svg;
  }

  left(days) {
    const shown = days.slice(-8);
    const [width, left, right, row] = [560, 100, 452, 30];
    const svg = s("svg", { class: "chart", viewBox: `0 0 ${width} ${shown.length * row}`, role: "img", "aria-label": "What is still to review" });
    shown.forEach((day, i) => {
      const total = Math.max(1, day.episodes - day.broken);
      const done = total - day.left;
      const open = () => { Object.assign(ListPage.settings, { day: day.day, status: day.left ? "open" : "" }); location.hash = ""; };
      const line = s("g", { style: { cursor: "pointer" }, on: { click: open } });
      line.append(rect(0, i * row, width, row, "", ""), text(left - 10, i * row + row / 2 + 4, dayName(day.day), "end", "ink"), rect(left, i * row + 9, right - left, row - 18, "rail"), rect(left, i * row + 9, ((right - left) * done) / total, row - 18, "done"), text(right + 14, i * row + row / 2 + 4, day.left ? `${day.left} left` : "done", "start", "ink"));
      line.firstChild.setAttribute("fill", "transparent");
      svg.append(line);
    });
    return svg;
  }
}
