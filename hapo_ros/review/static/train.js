// Hands the episodes to the optimizer, and shows how it gets on.

import { ask, store } from "/static/api.js";
import { duration, h, icon, plural, toast } from "/static/dom.js";

export async function openTraining() {
  let state = await ask("/api/training");
  const usable = () => store.list().filter((row) => row.used).length;
  const base = h("select", { id: "base" }, state.bases.map((name) => h("option", { value: name }, name)));
  const method = h("select", { id: "method" }, store.session.methods.map((each) => h("option", { value: each.name, selected: each.name === "hapo_anchored" }, each.name)));
  const about = h("p", { className: "hint" });
  const name = h("input", { id: "name", value: `reviewed-${new Date().toISOString().slice(0, 10)}`, maxLength: 80, spellcheck: false });
  const steps = h("input", { id: "steps", type: "number", min: 1, placeholder: "the method's own" });
  const missing = h("input", { id: "missing", type: "checkbox", style: { height: "auto" } });
  const command = h("pre", { hidden: true });
  const said = h("p", { className: "muted" });
  const bar = h("i");
  const progress = h("div", { className: "progress", hidden: true }, bar);
  const start = h("button", { className: "primary", id: "start-training" }, icon("spark"), "Start training");
  const cancel = h("button", { className: "danger", hidden: true }, "Cancel it");
  const show = h("button", { className: "ghost" }, "Show the command");
  const field = (label, control, hint) => h("div", { className: "field" }, h("label", { htmlFor: control.id }, label), control, hint && h("p", { className: "hint" }, hint));
  const dialog = h("dialog", { on: { close: () => { closed = true; dialog.remove(); } } },
    h("header", {}, h("h2", {}, "Train on these episodes"), h("span", { className: "grow" }), h("button", { className: "ghost", on: { click: () => dialog.close() } }, icon("cross"))),
    h("div", { className: "body" },
      h("p", { className: "muted" }, `${plural(usable(), "episode")} of ${store.keys.length} will be used, with the labels and outcomes as reviewed and K = ${store.k}. Excluded, discarded and damaged ones never are.`),
      field("Start from", base), field("Method", method), about, field("Name", name, "of the new checkpoint. What is served now does not change."), field("Steps", steps),
      h("div", { className: "field" }, h("label", { htmlFor: "missing" }, "Missing groups"), h("span", {}, missing, " give the share of a group without steps to the others")),
      command, progress, said),
    h("footer", {}, show, h("span", { className: "grow" }), cancel, start));
  let closed = false;
  const explain = () => { about.textContent = store.session.methods.find((each) => each.name === method.value)?.text ?? ""; };
  method.addEventListener("change", explain);
  explain();
  const goal = (only_command) => {
    const settings = { k: store.k };
    if (steps.value) settings.steps = Number(steps.value);
    if (missing.checked) settings.allow_missing_group = true;
    return { base: base.value, method: method.value, name: name.value, settings, only_command };
  };
  const draw = () => {
    const running = state.state === "running";
    start.disabled = running;
    cancel.hidden = !running;
    progress.hidden = !(running || state.state === "done");
    bar.style.width = state.state === "done" ? "100%" : `${(100 * (state.step ?? 0)) / Math.max(1, state.total ?? 1)}%`;
    const left = state.time_left_s ? `, ${duration(state.time_left_s)} left` : "";
    said.textContent = running && state.total ? `Step ${state.step} of ${state.total}, loss ${state.loss?.toFixed(3) ?? "–"}${left}` : state.text ?? "";
    said.className = state.state === "failed" ? "notice bad" : "muted";
  };
  const follow = async () => {
    while (!closed && state.state === "running") {
      await new Promise((done) => setTimeout(done, 500));
      state = await ask("/api/training");
      if (!closed) draw();
    }
  };
  const attempt = async (act) => {
    try {
      await act();
    } catch (error) {
      toast(error.message, "bad");
      said.textContent = error.message;
      said.className = "notice bad";
    }
  };
  start.addEventListener("click", () => attempt(async () => { state = { ...state, ...(await ask("/api/training", goal(false))) }; draw(); await follow(); }));
  show.addEventListener("click", () => attempt(async () => { command.textContent = (await ask("/api/training", goal(true))).command; command.hidden = false; }));
  cancel.addEventListener("click", () => attempt(() => ask("/api/training/cancel", {})));
  document.body.append(dialog);
  dialog.showModal();
  draw();
  follow();
}
