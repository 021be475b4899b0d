// Asks the server for its state every few seconds, and shows it.

import { Cards } from "./cards.js";
import { concerns } from "./concerns.js";
import { byId, element, fact, setText } from "./dom.js";
import { clock, duration } from "./format.js";
import { History } from "./series.js";
import { showAdapters, showEngines, showRefusals, showTenants, showWorkers } from "./tables.js";

const POLL_MS = 3000;
const PATIENCE_MS = 10000;

const history = new History();
const cards = new Cards();
let timer;
let asking = false;
let lastSeen = null;

/** The state, and the rows that we do not have yet; all of them from a server that is new. */
async function fetchState() {
  const reply = await fetch(`page/state?after=${history.taken}`, {
    signal: AbortSignal.timeout(PATIENCE_MS),
  });
  if (!reply.ok) throw new Error(await complaint(reply));
  const state = await reply.json();
  if (history.add(state.history)) return state;
  history.forget();
  return fetchState();
}

async function complaint(reply) {
  const { error } = await reply.json().catch(() => ({}));
  return error ?? `HTTP ${reply.status}`;
}

async function poll() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  const state = await fetchState().catch(showOffline);
  asking = false;
  // A page that nobody sees asks nothing.
  if (!document.hidden) timer = setTimeout(poll, POLL_MS);
  if (state) show(state);
}

function show(state) {
  lastSeen = new Date();
  byId("offline").hidden = true;
  document.body.classList.remove("stale");
  showHealth(state.unhealthy_reason);
  showAbout(state);
  showConcerns(concerns(history, state));
  cards.show(history, state);
  showWorkers(state);
  showAdapters(state);
  showEngines(state);
  showTenants(state);
  showRefusals(state);
}

function showHealth(reason) {
  badge(reason === null ? "ok" : "bad", reason === null ? "Healthy" : "Unhealthy");
}

function showOffline(error) {
  const told = error instanceof TypeError ? "no connection" : error.message;
  const seen = lastSeen ? ` What you see is from ${clock(lastSeen)}.` : "";
  badge("bad", "No answer");
  document.body.classList.add("stale");
  byId("offline").hidden = false;
  setText(
    byId("offline"),
    `The server does not answer (${told}).${seen} This page goes on asking and recovers by itself.`,
  );
}

function badge(tone, text) {
  byId("health").className = `badge ${tone}`;
  setText(byId("health"), text);
  document.title = tone === "ok" ? "kv-sidecar" : `${text}: kv-sidecar`;
}

function showAbout({ version, chunk_size: chunk, listens_on: wire }) {
  const facts = [
    ["Listens on", `${wire.host}:${wire.port}`],
    ["Up", duration(history.age)],
    ["Chunk", `${chunk} tokens`],
    ["Version", version],
  ];
  byId("about").replaceChildren(...facts.map(([name, value]) => fact([name], value)));
}

function showConcerns(found) {
  const list = byId("concerns");
  list.hidden = !found.length;
  const written = JSON.stringify(found);
  if (list.written === written) return;
  list.written = written;
  list.replaceChildren(
    ...found.map(({ tone, text }) => element("li", { class: `notice ${tone}` }, text)),
  );
}

document.addEventListener("visibilitychange", () => document.hidden || poll());
poll();
