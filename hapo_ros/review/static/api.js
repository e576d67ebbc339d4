// What the page asks the server, and what it keeps of it.

export class Refused extends Error {
  constructor(status, answer) {
    super(answer?.error ?? `The server answered ${status}.`);
    this.status = status;
    this.answer = answer;
  }
}

export async function ask(path, body) {
  let response;
  try {
    response = await fetch(path, body === undefined ? {} : {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
  } catch {
    throw new Refused(0, { error: "The server does not answer. Is `hapo review` still running?" });
  }
  const answer = await response.json().catch(() => null);
  if (!response.ok) throw new Refused(response.status, answer);
  return { ...answer, status: response.status };
}

function bytes(text) {
  const raw = atob(text);
  const found = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
  return found;
}

export const u8 = (text) => bytes(text);
export const i8 = (text) => new Int8Array(bytes(text).buffer);
export const i32 = (text) => new Int32Array(bytes(text).buffer);
export const f32 = (text) => new Float32Array(bytes(text).buffer);

export const LABELS = ["undesirable", "policy", "human", "none"];

const stored = (name, otherwise) => localStorage.getItem(`hapo.${name}`) ?? otherwise;

// Settings of this browser, and the rows of all episodes. Whoever shows them listens for "rows".
class Store extends EventTarget {
  rows = new Map();
  keys = [];
  left = 0;
  count = -1;
  session = { folders: [], methods: [], reasons: {}, reviewer: "", default_k: 10 };

  async begin() {
    this.session = await ask("/api/session");
    this.k = Number(stored("k", this.session.default_k));
    this.reviewer = stored("reviewer", this.session.reviewer);
    await this.refresh();
    this.watch();
  }

  setReviewer(name) {
    this.reviewer = name.trim().slice(0, 100) || this.session.reviewer;
    localStorage.setItem("hapo.reviewer", this.reviewer);
  }

  async setK(k) {
    this.k = k;
    localStorage.setItem("hapo.k", k);
    this.count = -1;
    await this.refresh();
  }

  async refresh() {
    const k = this.k;
    const found = await ask(`/api/episodes?k=${k}&since=${this.count}`);
    if (k !== this.k) return;
    const gone = found.keys.length !== this.keys.length;
    for (const row of found.rows) this.rows.set(row.key, row);
    Object.assign(this, { keys: found.keys, left: found.left, count: found.count });
    if (found.rows.length || gone) this.dispatchEvent(new CustomEvent("rows"));
  }

  put(row) {
    this.rows.set(row.key, row);
    this.dispatchEvent(new CustomEvent("rows"));
  }

  async watch() {
    for (;;) {
      await new Promise((done) => setTimeout(done, this.left ? 700 : 3000));
      if (document.hidden) continue;
      try {
        await this.refresh();
        this.setOnline(true);
      } catch {
        this.setOnline(false);
      }
    }
  }

  setOnline(online) {
    document.body.classList.toggle("offline", !online);
  }

  list() {
    return this.keys.map((key) => this.rows.get(key)).filter(Boolean);
  }
}

export const store = new Store();
