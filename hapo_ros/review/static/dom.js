// Elements. Whatever is a string becomes text, never markup: bags come from anywhere.

const SVG = "http://www.w3.org/2000/svg";

function build(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, heard] of Object.entries(value)) element.addEventListener(event, heard);
    else if (name === "style") for (const [key, set] of Object.entries(value)) element.style.setProperty(key, set);
    else if (name in element && name !== "list" && !(element instanceof SVGElement)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, properties, ...children) => build(document.createElement(tag), properties, children);
export const s = (tag, properties, ...children) => build(document.createElementNS(SVG, tag), properties, children);

export const ICONS = {
  back: "M10 3 5 8l5 5", next: "m6 3 5 5-5 5", play: "M5 3.2v9.6L12.5 8z", pause: "M5.5 3.5v9M10.5 3.5v9",
  first: "M4 3.5v9M12 3.5 6.5 8l5.5 4.5z", last: "M12 3.5v9M4 3.5 9.5 8 4 12.5z", undo: "M6 4 3 7l3 3M3 7h6.5a3 3 0 0 1 0 6H7",
  redo: "m10 4 3 3-3 3M13 7H6.5a3 3 0 0 0 0 6H9", check: "m3.5 8.5 3 3 6-7", cross: "m4 4 8 8M12 4l-8 8",
  search: "M7 12A5 5 0 1 0 7 2a5 5 0 0 0 0 10ZM10.8 10.8 14 14", flag: "M4 14V2.5h8L10 6l2 3.5H4", pen: "m3 13 .6-2.8 7-7 2.2 2.2-7 7z",
  keys: "M2 4.5h12v7H2zM4.5 7h.01M7 7h.01M9.5 7h.01M12 7h.01M5 9.5h6", spark: "M8 2v4M8 10v4M2 8h4M10 8h4", eye: "M1.5 8s2.4-4 6.5-4 6.5 4 6.5 4-2.4 4-6.5 4-6.5-4-6.5-4ZM8 9.6a1.6 1.6 0 1 0 0-3.2 1.6 1.6 0 0 0 0 3.2Z",
};

export const icon = (name, title) =>
  s("svg", { class: "icon", viewBox: "0 0 16 16", "aria-hidden": title ? null : "true" }, title && s("title", {}, title), s("path", { d: ICONS[name] }));

export const key = (text) => h("kbd", {}, text);

export function toast(text, kind = "", actions = []) {
  const box = h("div", { className: `toast ${kind}` }, h("span", {}, text));
  for (const [label, act] of actions) box.append(h("button", { on: { click: () => { box.remove(); act(); } } }, label));
  const keep = kind === "bad" || actions.length;
  if (keep) box.append(h("button", { className: "ghost", title: "Dismiss", on: { click: () => box.remove() } }, icon("cross")));
  document.getElementById("toasts").append(box);
  setTimeout(() => box.remove(), keep ? 20000 : 2600);
  return box;
}

export const percent = (share) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(share && share < 0.0995 ? 1 : 0)} %`);

export function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole >= 3600) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  if (whole >= 60) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${seconds.toFixed(1)} s`;
}

export const clock = (seconds) => {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(2).padStart(5, "0")}`;
};

export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

export function dayName(day) {
  const date = new Date(`${day}T00:00:00`);
  return date.toLocaleDateString("en-GB", { weekday: "short", day: "numeric", month: "short" });
}

export function ago(iso) {
  const minutes = (Date.now() - new Date(iso)) / 60000;
  if (minutes < 1) return "just now";
  if (minutes < 60) return `${Math.floor(minutes)} min ago`;
  if (minutes < 60 * 24) return `${Math.floor(minutes / 60)} h ago`;
  return new Date(iso).toLocaleDateString("en-GB", { day: "numeric", month: "short" });
}
