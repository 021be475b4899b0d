// Workers, adapters and refusals as tables; on a narrow screen each row becomes a card.

import { byId, element, meter, setText } from "./dom.js";
import { ago, bytes, bytesOf, count, moved, NOTHING, plural } from "./format.js";
import { REASONS } from "./reasons.js";

const MODES = {
  handle: ["Handle", "the server copies"],
  engine_driven: ["Engine-driven", "the worker copies"],
};
// Where a server listens that listens on all addresses.
const EVERYWHERE = ["*", "0.0.0.0", "::"];
const BREAKER = {
  closed: { tone: "ok", text: "Working" },
  open: { tone: "bad", text: "Cut off" },
  "half-open": { tone: "warn", text: "On trial" },
};

export function showWorkers(state) {
  const columns = ["Worker", "Mode", "Layout", "#Blocks", "#Bytes a token", "State"];
  const rows = state.workers.map((worker) => [
    { text: worker.model_name, note: `instance ${worker.instance_id}, lmcache ${worker.lmcache}` },
    { text: MODES[worker.kind][0], note: MODES[worker.kind][1] },
    layout(worker),
    { text: worker.num_blocks === null ? NOTHING : count(worker.num_blocks) },
    { text: worker.cache_size_per_token ? bytes(worker.cache_size_per_token) : NOTHING },
    connection(worker),
  ]);
  show("workers", columns, rows, () => noWorkers(state.listens_on));
}

/** Only where somebody uses the native door. */
export function showEngines(state) {
  const columns = ["Engine", "#Ranks", "#Reserved", "#Pinned", "State"];
  byId("engines-panel").hidden = !state.engines.length;
  const rows = state.engines.map((engine) => [
    { text: engine.model_name, note: `vLLM's own connector, session ${engine.session}` },
    { text: count(engine.ranks) },
    { text: bytes(engine.reserved_bytes) },
    { text: bytes(engine.pinned_bytes) },
    engineState(engine),
  ]);
  show("engines", columns, rows, () => [element("p", { class: "empty" }, NOTHING)]);
}

function engineState(engine) {
  if (engine.lost || !engine.connected) return { text: "Connection lost", tone: "warn" };
  if (engine.ready) return { text: "Ready", tone: "ok" };
  const mapped = `${engine.mapped_ranks.length} of ${engine.ranks} ranks`;
  return { text: "Waits for its workers", tone: "warn", note: `${mapped} have mapped the L1` };
}

export function showAdapters(state) {
  const columns = ["Adapter", "Kept", "#Read", "#Written", "#Under way", "Loads", "Stores"];
  const rows = state.adapters.map((adapter) => [
    { text: adapter.label, note: adapter.type + (adapter.shared ? ", shared" : "") },
    kept(adapter),
    { text: moved(adapter.read_bytes), note: "since start" },
    { text: moved(adapter.written_bytes), note: "since start" },
    {
      text: count(adapter.reading + adapter.writing),
      note: `${count(adapter.queued)} queued`,
    },
    breaker(adapter.breakers.load),
    breaker(adapter.breakers.store),
  ]);
  show("adapters", columns, rows, noAdapters);
}

/** Only where somebody has a quota: a panel of its own, one row a tenant. */
export function showTenants(state) {
  const tiers = Object.keys(state.tenants[0]?.tiers ?? {});
  const names = tiers.map((tier) => (tier === "l1" ? "L1" : tier));
  byId("tenants-panel").hidden = !state.tenants.length;
  const rows = state.tenants.map((tenant) => [
    { text: tenant.name, code: true },
    ...tiers.map((tier) => quota(tenant.tiers[tier])),
  ]);
  show("tenants", ["Tenant", ...names], rows, () => [element("p", { class: "empty" }, NOTHING)]);
}

export function showRefusals(state) {
  const columns = ["Operation", "Reason", "Latest detail", "#Times", "#Latest"];
  const rows = state.refusals.map((refusal) => [
    { text: refusal.operation, code: true },
    { text: refusal.reason, code: true, note: REASONS[refusal.reason] },
    { text: refusal.detail || NOTHING },
    { text: count(refusal.count) },
    { text: ago(refusal.seconds_ago) },
  ]);
  show("refusals", columns, rows, () => [
    element("p", { class: "empty" }, "Nothing was refused since the server started."),
  ]);
}

/** A table in the panel `name`; without rows what `empty()` returns. Numbers' titles begin with #. */
function show(name, columns, rows, empty) {
  const panel = byId(name);
  setText(byId(`${name}-count`), rows.length ? count(rows.length) : "");
  if (!rows.length) {
    if (!panel.querySelector(".empty")) panel.replaceChildren(...empty());
    return;
  }
  if (!panel.querySelector("table")) panel.replaceChildren(table(columns));
  const body = panel.querySelector("tbody");
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, i) => fill(body.rows[i] ?? newRow(body, columns), cells));
}

// Roles are said, because a table that is laid out as cards would lose them.
function table(columns) {
  const heads = columns.map((title) =>
    element("th", { role: "columnheader", scope: "col", class: kind(title) }, label(title)),
  );
  return element(
    "table",
    { role: "table" },
    element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...heads)),
    element("tbody", { role: "rowgroup" }),
  );
}

function newRow(tbody, columns) {
  const row = tbody.insertRow();
  row.setAttribute("role", "row");
  row.append(
    ...columns.map((title) =>
      element("td", { role: "cell", class: kind(title), "data-label": label(title) }),
    ),
  );
  return row;
}

/** Only cells that differ are written anew: a selection survives. */
function fill(row, cells) {
  cells.forEach((cell, i) => {
    const written = JSON.stringify(cell);
    const node = row.cells[i];
    if (node.written === written) return;
    node.written = written;
    node.replaceChildren(...content(cell));
  });
}

/** A cell is {text, note, tone, code, share}, of which only the text must be there. */
function content({ text, note, tone, code, share }) {
  const main = tone
    ? element("span", { class: `badge ${tone}` }, text)
    : element(code ? "code" : "span", {}, text);
  const bar = share === undefined ? null : meter(share);
  return [main, bar, note ? element("small", {}, note) : null].filter(Boolean);
}

const kind = (title) => (title.startsWith("#") ? "number" : null);
const label = (title) => title.replace("#", "");

function layout(worker) {
  if (worker.kind === "engine_driven") {
    const shape = worker.use_mla ? "MLA" : "keys and values";
    return { text: `${worker.num_layers} layers, ${worker.block_size} tokens a block`, note: shape };
  }
  const texts = worker.groups.map(
    (group) =>
      `${group.layer_indices.length} layers, ${group.tokens_per_block} tokens a block, ${group.dtype}`,
  );
  const formats = worker.groups.map((group) => `${group.engine_kv_format} [${group.shape}]`);
  return { text: texts.join("; "), note: formats.join("; ") };
}

function connection(worker) {
  const heard = `heard ${ago(worker.last_seen_seconds)}`;
  return worker.connected
    ? { tone: "ok", text: "Connected", note: heard }
    : { tone: "bad", text: "Connection lost", note: heard };
}

function kept({ used_bytes: used, capacity_bytes: capacity, objects, scanned, shared }) {
  // Only the backend knows what others have put there.
  const but = shared ? " known here" : scanned ? "" : ", still being listed";
  const note = plural(objects, "object") + but;
  if (capacity === null) return { text: bytes(used), note };
  return { text: bytesOf(used, capacity), share: used / capacity, note };
}

function quota({ used, limit }) {
  if (limit === null) return { text: bytes(used), note: "no limit" };
  return { text: bytesOf(used, limit), share: limit ? used / limit : 1 };
}

function breaker({ state, last_failure: failure }) {
  const note = failure && (state === "closed" ? `earlier: ${failure}` : failure);
  return { ...BREAKER[state], note };
}

function noWorkers({ host, port }) {
  const name = EVERYWHERE.includes(host) ? location.hostname : host;
  const isBareIPv6 = /^[^[/]*:[^/]*$/.test(name);
  const url = name.includes("://") ? name : `tcp://${isBareIPv6 ? `[${name}]` : name}`;
  const flags = `--role aggregated --host ${url} --port ${port}`;
  const command = `vllm serve MODEL --kv-transfer-config "$(kv-sidecar connector ${flags})"`;
  return [
    element("p", { class: "empty" }, "No worker has registered yet."),
    element("p", { class: "hint" }, "Point a vLLM at ", element("code", {}, `${url}:${port}`), ":"),
    element("pre", {}, command),
  ];
}

function noAdapters() {
  const flag = `--l2-adapter '{"type": "fs", "base_path": "/data/l2", "max_capacity_gb": 500}'`;
  return [
    element("p", { class: "empty" }, "No L2 is configured: what the L1 evicts is gone."),
    element("p", { class: "hint" }, "To keep it, start the server with a disk, or a bucket:"),
    element("pre", {}, `kv-sidecar serve --l1-size-gb 16 ${flag}`),
  ];
}
