// What a person should look at, worst first, with what it means.

import { plural } from "./format.js";

/** [{tone, text}] of a state and the last 15 minutes. */
export function concerns(history, state) {
  return [
    ...unhealthy(state),
    ...grown(history, "l2_corrupt", "bad", (n) =>
      `${plural(n, "object")} from L2 in 15 min were not what they should be. They were not ` +
      "used, but the backend, or what lies below it, damages data.",
    ),
    ...state.adapters.flatMap(cutOff),
    ...notKept(state.kept),
    ...lost(state.workers.filter((worker) => !worker.connected)),
    ...grown(history, "l1_no_room", "warn", (n) =>
      `The L1 had no room for ${plural(n, "chunk")} in 15 min: all that was ready was in use. ` +
      "A larger --l1-size-gb helps.",
    ),
    ...grown(history, "l2_dropped", "warn", (n) =>
      `${plural(n, "object")} ${n === 1 ? "was" : "were"} not written to L2 in 15 min. ` +
      "They are lost when the L1 evicts them.",
    ),
  ];
}

function unhealthy({ unhealthy_reason: reason }) {
  return reason === null ? [] : [{ tone: "bad", text: `Unhealthy: ${reason}.` }];
}

function notKept({ failed }) {
  return failed ? [{ tone: "warn", text: `The next server will not find this L1: ${failed}.` }] : [];
}

function cutOff(adapter) {
  return Object.entries(adapter.breakers)
    .filter(([, breaker]) => breaker.state !== "closed")
    .map(([direction, breaker]) => ({
      tone: "warn",
      text:
        `L2 adapter ${adapter.label}: ${direction}s are cut off after failures ` +
        `(${breaker.last_failure}). The cache goes on without it and tries it again by itself.`,
    }));
}

function lost(workers) {
  if (!workers.length) return [];
  const verb = workers.length === 1 ? "has lost its" : "have lost their";
  return [{ tone: "warn", text: `${plural(workers.length, "worker")} ${verb} connection.` }];
}

function grown(history, column, tone, text) {
  const growth = history.growth(column);
  return growth ? [{ tone, text: text(growth) }] : [];
}
