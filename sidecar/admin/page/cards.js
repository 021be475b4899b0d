// The charts with the figure that matters most above each.

import { Chart, key } from "./chart.js";
import { byId, element, fact, setText } from "./dom.js";
import {
  bytes, bytesOf, count, duration, moved, NOTHING, percent, perSecond, plural, rate,
} from "./format.js";

const WINDOW = "in 15 min";

const HITS = {
  title: "Hit rate",
  chart: {
    lines: [
      { name: "L1", tone: "blue", area: true },
      { name: "L2", tone: "violet", area: true },
    ],
    format: (value) => percent(value, 100),
    stacked: true,
  },
  show(history) {
    const asked = history.growth("requested_tokens");
    const [l1, l2] = ["l1_hit_tokens", "l2_hit_tokens"].map((name) => history.growth(name));
    return {
      figure: percent(l1 + l2, asked),
      about: asked ? `of ${count(asked)} tokens looked up ${WINDOW}` : `no lookups ${WINDOW}`,
      values: [percent(l1, asked), percent(l2, asked)],
      facts: [["Not cached", percent(asked - l1 - l2, asked)]],
      columns: [
        history.share("l1_hit_tokens", "requested_tokens"),
        history.share("l2_hit_tokens", "requested_tokens"),
      ],
      top: 100,
    };
  },
};

const TRANSFERS = {
  title: "Transfers with workers",
  chart: {
    lines: [
      { name: "To workers", tone: "blue", area: true },
      { name: "From workers", tone: "teal", dashed: true },
    ],
    format: rate,
  },
  show(history, state) {
    return {
      ...traffic(history, "load_bytes", "store_bytes"),
      facts: [["Under way", count(state.queue_depth)]],
    };
  },
};

const REQUESTS = {
  title: "Lookups",
  chart: {
    lines: [
      { name: "Lookups", tone: "blue", area: true },
      { name: "Refusals", tone: "red", dashed: true },
    ],
    format: perSecond,
  },
  show(history, { kv_events: events }) {
    const columns = [history.rate("lookups"), history.rate("refusals")];
    const readers = events.subscribers + events.native_readers;
    return {
      figure: latest(columns[0], perSecond),
      about: `${plural(history.growth("lookups"), "lookup")} ${WINDOW}`,
      values: columns.map((column) => latest(column, perSecond)),
      facts: [
        [`Refusals ${WINDOW}`, count(history.growth("refusals"))],
        ...some(readers, "Readers of KV events", count(readers)),
      ],
      columns,
    };
  },
};

const L1 = {
  title: "L1 occupancy",
  chart: {
    lines: [
      { name: "Used", tone: "blue", area: true },
      { name: "Evicts above", tone: "grey", dashed: true },
    ],
    format: bytes,
    base: 1024,
  },
  show(history, { l1, eviction, kept, protected: held }) {
    const watermark = eviction.trigger_watermark * l1.total_bytes;
    const used = history.level("l1_used_bytes");
    return {
      figure: percent(l1.used_bytes, l1.total_bytes),
      about: bytesOf(l1.used_bytes, l1.total_bytes),
      values: [bytes(l1.used_bytes), bytes(watermark)],
      facts: [
        ["Objects", count(l1.total_objects)],
        ["In use", count(l1.read_locked + l1.write_locked)],
        [`Evicted ${WINDOW}`, count(history.growth("l1_evicted"))],
        ...some(held.count, "Protected", bytesOf(held.used_bytes, held.limit_bytes)),
        ...some(kept.seconds, "Kept after a stop", kept.failed ? "no" : duration(kept.seconds)),
        ...some(kept.unproven_objects, "To be verified", count(kept.unproven_objects)),
        ...some(kept.others_bytes, "Of earlier workers", bytes(kept.others_bytes)),
      ],
      columns: [used, used.map(() => watermark)],
      top: l1.total_bytes,
    };
  },
};

const L2 = {
  title: "L2 occupancy",
  chart: { lines: [{ name: "Used", tone: "violet", area: true }], format: bytes, base: 1024 },
  show(history, { adapters }) {
    const limited = adapters.every((adapter) => adapter.capacity_bytes !== null);
    const [used, capacity] = [sum(adapters, "used_bytes"), sum(adapters, "capacity_bytes")];
    return {
      figure: limited ? percent(used, capacity) : bytes(used),
      about: limited ? bytesOf(used, capacity) : "without a limit",
      values: [bytes(used)],
      facts: [
        ["Objects", count(sum(adapters, "objects"))],
        ["To be written", count(sum(adapters, "queued") + sum(adapters, "writing"))],
        [`Dropped ${WINDOW}`, count(history.growth("l2_dropped"))],
      ],
      columns: [history.level("l2_used_bytes")],
      top: limited ? capacity : null,
    };
  },
};

const L2_TRANSFERS = {
  title: "Transfers with L2",
  chart: {
    lines: [
      { name: "Read", tone: "violet", area: true },
      { name: "Write", tone: "teal", dashed: true },
    ],
    format: rate,
  },
  show(history, { adapters }) {
    return {
      ...traffic(history, "l2_load_bytes", "l2_store_bytes"),
      facts: [
        ["Being read", count(sum(adapters, "reading"))],
        [`Corrupt ${WINDOW}`, count(history.growth("l2_corrupt"))],
      ],
    };
  },
};

const ALWAYS = [HITS, TRANSFERS, REQUESTS, L1];
const WITH_L2 = [L2, L2_TRANSFERS];

/** The cards on the page; which there are is known when the first state has come. */
export class Cards {
  constructor() {
    this.cards = [];
  }

  show(history, state) {
    const wanted = state.adapters.length ? [...ALWAYS, ...WITH_L2] : ALWAYS;
    if (wanted.length !== this.cards.length) {
      this.cards = wanted.map((kind) => new Card(kind));
      byId("cards").replaceChildren(...this.cards.map((card) => card.node));
    }
    this.cards.forEach((card) => card.show(history, state));
  }
}

class Card {
  constructor(kind) {
    this.kind = kind;
    this.chart = new Chart({ name: `${kind.title}, last minutes: arrow keys tell the values`, ...kind.chart });
    this.figure = element("p", { class: "figure" });
    this.about = element("p", { class: "figure-about" });
    this.values = element("dl", { class: "values" });
    this.facts = element("dl", { class: "values" });
    this.node = element(
      "article",
      { class: "card" },
      element("h2", {}, kind.title),
      element("div", { class: "headline" }, this.figure, this.about),
      this.chart.container,
      this.values,
      this.facts,
    );
  }

  show(history, state) {
    const { figure, about, values, facts, columns, top } = this.kind.show(history, state);
    setText(this.figure, figure);
    setText(this.about, about);
    this.chart.draw(history, columns, top);
    const lines = this.kind.chart.lines;
    this.values.replaceChildren(
      ...lines.map((line, i) => fact([key(line), line.name], values[i])),
    );
    this.facts.replaceChildren(...facts.map(([name, value]) => fact([name], value)));
  }
}

/** A fact that is told only where there is something. */
const some = (amount, name, value) => (amount ? [[name, value]] : []);

const sum = (adapters, field) => adapters.reduce((total, adapter) => total + adapter[field], 0);

/** What two directions move a second now, and have moved. */
function traffic(history, first, second) {
  const columns = [history.rate(first), history.rate(second)];
  const now = columns.map((column) => column.at(-1) ?? 0);
  return {
    figure: rate(now[0] + now[1]),
    about: `${moved(history.growth(first) + history.growth(second))} ${WINDOW}`,
    values: now.map(rate),
    columns,
  };
}

function latest(column, format) {
  return column.at(-1) === null ? NOTHING : format(column.at(-1));
}
