// The frame around the pages: header, which page is shown, keys that work everywhere.

import { ask, store } from "/static/api.js";
import { ICONS, h, icon, key, plural, toast } from "/static/dom.js";
import { DashboardPage } from "/static/dashboard.js";
import { EpisodePage } from "/static/episode.js";
import { ListPage } from "/static/list.js";
import { openTraining } from "/static/train.js";

const view = document.getElementById("view");
let page = null;

function header() {
  const tabs = { "": "Episodes", dashboard: "Dashboard" };
  const links = Object.entries(tabs).map(([hash, name]) => h("a", { href: `#${hash}`, "data-tab": hash }, name));
  const search = h("input", {
    type: "search", placeholder: "Search episodes", ariaLabel: "Search episodes", id: "search", spellcheck: false,
    on: { input: () => { if (location.hash.length > 1) location.hash = ""; page.search?.(search.value); } },
  });
  search.value = ListPage.settings.words;
  const k = h("input", {
    type: "number", min: 0, max: 10000, id: "k", ariaLabel: "K: steps before a takeover that are undesirable",
    on: { change: () => changeK(Number(k.value)) },
  });
  const work = h("i");
  const reading = h("span", { className: "reading" });
  const who = h("button", { className: "who", title: "Who is reviewing: click to change", on: { click: askWho } });
  const show = () => {
    const total = store.keys.length;
    k.value = store.k;
    who.replaceChildren(h("span", { className: "avatar" }, store.reviewer.slice(0, 1).toUpperCase()), store.reviewer);
    work.style.width = store.left ? `${100 * (1 - store.left / Math.max(1, total))}%` : "0";
    reading.textContent = store.left ? `Reading ${total - store.left} of ${plural(total, "bag")}` : "";
    for (const link of links) link.toggleAttribute("aria-current", false);
    const at = location.hash.slice(1).split("/")[0];
    links.find((link) => link.dataset.tab === (at === "dashboard" ? at : ""))?.setAttribute("aria-current", "page");
  };
  document.getElementById("top").replaceChildren(
    h("a", { className: "brand", href: "#" }, h("img", { src: "/static/icon.svg", alt: "" }), "hapo", h("span", {}, "review")),
    h("nav", {}, links),
    reading,
    h("span", { className: "grow" }),
    h("div", { className: "search" }, icon("search"), search, key("/")),
    h("div", { className: "stepper", title: "Steps before a takeover that are undesirable. A reviewer's label stays." }, h("label", { htmlFor: "k" }, "K"), k),
    h("button", { id: "train", on: { click: openTraining } }, icon("spark"), "Train"),
    h("button", { className: "ghost", title: "Keyboard shortcuts", on: { click: shortcuts } }, icon("keys")),
    who,
    h("div", { className: "bar-of-work" }, work),
  );
  store.addEventListener("rows", show);
  addEventListener("hashchange", show);
  addEventListener("reviewer", show);
  show();
}

async function changeK(value) {
  const k = Math.min(10000, Math.max(0, Math.round(value) || 0));
  await store.setK(k);
  await page.kChanged?.();
}
addEventListener("set-k", (event) => changeK(event.detail));

function askWho() {
  const name = h("input", { value: store.reviewer, maxLength: 100, autofocus: true });
  const dialog = h("dialog", { on: { close: () => dialog.remove() } },
    h("form", { method: "dialog", on: { submit: () => { store.setReviewer(name.value); dispatchEvent(new Event("reviewer")); } } },
      h("header", {}, h("h2", {}, "Who is reviewing?")),
      h("div", { className: "body" }, name, h("p", { className: "hint" }, "It is kept with every edit that you make, and with nothing else.")),
      h("footer", {}, h("span", { className: "grow" }), h("button", { className: "primary" }, "Save"))));
  document.body.append(dialog);
  dialog.showModal();
  name.select();
}

export function shortcuts() {
  const keys = [
    ["Play, pause", "Space"], ["Success, failure", "Y N"], ["A step back, on", "← →"], ["Exclude, or take back in", "X"],
    ["Ten steps", "Shift ← →"], ["Reviewed, and on to the next", "Enter"], ["Beginning, end", "Home End"], ["Note", "C"],
    ["Takeover before, next", "Shift T / T"], ["Undo, redo", "U / Shift U"], ["Slower, faster", ", ."], ["Next, previous episode", "J K"],
    ["Begin, end a selection here", "[ ]"], ["Zoom in, out, all", "+ − F"], ["Label a step, or the selection", "0 1 2 3"], ["Back to the list", "Esc"],
    ["Label as recorded", "Backspace"], ["Search", "/"],
  ];
  const dialog = h("dialog", { on: { close: () => dialog.remove() } },
    h("header", {}, h("h2", {}, "Keyboard"), h("span", { className: "grow" }), h("button", { className: "ghost", on: { click: () => dialog.close() } }, icon("cross"))),
    h("div", { className: "body" }, h("div", { className: "shortcuts" }, keys.map(([what, pressed]) => {
      const words = pressed.split(" ").map((each) => (each === "/" && pressed !== "/" ? " " : key(each)));
      return h("div", {}, what, h("span", {}, words.flatMap((each) => [each, " "])));
    }))));
  document.body.append(dialog);
  dialog.showModal();
}

async function show() {
  page?.close?.();
  const [name, argument] = location.hash.slice(1).split("/");
  if (name === "e") page = new EpisodePage(argument);
  else if (name === "dashboard") page = new DashboardPage();
  else page = new ListPage();
  view.replaceChildren(page.element);
  document.body.dataset.page = name || "list";
  document.title = "hapo review";
  await page.open?.();
}

addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select, dialog");
  if (event.key === "Escape" && typing && !typing.closest("dialog")) { typing.blur(); view.focus(); return; }
  if (typing || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); document.getElementById("search").focus(); return; }
  if (event.key === "?") { shortcuts(); return; }
  page?.keyed?.(event);
});

addEventListener("unhandledrejection", (event) => toast(event.reason?.message ?? String(event.reason), "bad"));

try {
  await store.begin();
  header();
  addEventListener("hashchange", show);
  await show();
} catch (error) {
  view.replaceChildren(h("div", { className: "broken" }, h("div", {}, h("h2", {}, "The page cannot start"), h("p", {}, error.message))));
}
