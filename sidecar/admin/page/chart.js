// A chart of the last minutes: areas and lines over time, their values under the pointer.

import { element, setText, svg } from "./dom.js";
import { clock } from "./format.js";
import { niceTop, stack } from "./scale.js";

const HEIGHT = 132;
const LEFT = 64; // for the values, so that no line crosses them
const TOP = 8; // for half the label of the highest value
const BOTTOM = 20; // for the time
// How much time is shown, as far as the history goes back, and which minutes are marked.
const SPANS = [
  { seconds: 120, marks: [2, 1, 0] },
  { seconds: 300, marks: [5, 4, 3, 2, 1, 0] },
  { seconds: 900, marks: [15, 10, 5, 0] },
];
// Lines do not bridge samples that are missing, such as those of a server that stood still.
const GAP_SAMPLES = 2.5;
const LEAP_SAMPLES = 20; // of the keys for pages

export class Chart {
  /**
   * `name` is the chart's for those who do not see it. Each of `lines` is {name, tone, dashed,
   * area}; with `stacked` each lies on the one before. `format` writes a value, and `base` is
   * that of its units.
   */
  constructor({ name, lines, format, base = 1000, stacked = false }) {
    Object.assign(this, { lines, format, base, stacked });
    this.drawn = null;
    this.selected = null;
    this.canvas = svg("svg", { "aria-hidden": "true" });
    this.tip = element("div", { class: "tip", hidden: "" });
    this.spoken = element("output", { class: "unseen" });
    this.node = element(
      "div",
      { class: "chart", tabindex: "0", role: "img", "aria-label": name },
      this.canvas,
      this.tip,
    );
    this.container = element("div", { class: "plot" }, this.node, this.spoken);
    this.listen();
  }

  /**
   * Show values at the history's times: `columns` has one list a line, null where there is none.
   * The scale ends at `top`, or where the values do.
   */
  draw(history, columns, top = null) {
    const [ages, gap] = [history.ages(), GAP_SAMPLES * history.sampleSeconds];
    this.drawn = { ages, columns, gap, top, at: Date.now() };
    this.span = SPANS.find((span) => span.seconds >= (ages[0] ?? 0)) ?? SPANS.at(-1);
    this.paint();
  }

  paint() {
    const width = this.node.clientWidth;
    if (!this.drawn || !width) return;
    this.width = width;
    this.levels = this.stacked ? stack(this.drawn.columns) : this.drawn.columns;
    this.highest = Math.max(0, ...this.levels.flat());
    this.scale = this.drawn.top ?? niceTop(this.highest, this.base);
    this.canvas.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.canvas.replaceChildren(
      ...this.grid(),
      ...this.shapes(),
      ...this.labels(),
      this.cursor(),
    );
    this.tell();
  }

  x(age) {
    return LEFT + (this.width - LEFT) * (1 - age / this.span.seconds);
  }

  age(x) {
    return this.span.seconds * (1 - (x - LEFT) / (this.width - LEFT));
  }

  y(value) {
    return HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - TOP) * value) / this.scale;
  }

  grid() {
    return [0, this.scale / 2, this.scale].map((value) => {
      const y = this.y(value);
      return svg("line", { class: "rule", x1: LEFT, x2: this.width, y1: y, y2: y });
    });
  }

  /** Beside and below what is drawn. A scale of nothing has no values. */
  labels() {
    const values = this.drawn.top || this.highest ? [this.scale / 2, this.scale] : [];
    return [
      ...values.map((value) => text(LEFT - 6, this.y(value) + 4, this.format(value), "end")),
      ...this.span.marks.map((minutes) => {
        const [label, anchor] = minutes ? [`\u2212${minutes} min`, "middle"] : ["now", "end"];
        return text(this.x(60 * minutes), HEIGHT - 5, label, anchor);
      }),
    ];
  }

  /** The last line first, because what is stacked lies behind what it stands on. */
  shapes() {
    return this.lines.flatMap((line, i) => {
      const below = this.stacked && i ? this.levels[i - 1] : null;
      const runs = this.runs(this.levels[i]);
      const edge = runs.map((run) => this.path(run, this.levels[i])).join("");
      const fill = runs.map((run) => this.path(run, this.levels[i]) + this.back(run, below)).join("");
      return [
        line.area ? svg("path", { class: `fill ${line.tone}`, d: fill }) : "",
        svg("path", { class: `line ${line.tone}${line.dashed ? " dashed" : ""}`, d: edge }),
      ];
    }).reverse();
  }

  /** Lists of indices between which a line is drawn. */
  runs(values) {
    const { ages, gap } = this.drawn;
    const runs = [];
    values.forEach((value, i) => {
      if (value === null) return;
      const goesOn = i && values[i - 1] !== null && ages[i - 1] - ages[i] <= gap;
      if (goesOn) runs.at(-1).push(i);
      else runs.push([i]);
    });
    return runs;
  }

  path(run, values) {
    return run.map((i, n) => `${n ? "L" : "M"}${this.point(i, values[i])}`).join("");
  }

  /** From the end of a run back to its start, along what it stands on. */
  back(run, below) {
    const points = [...run].reverse().map((i) => `L${this.point(i, below ? below[i] : 0)}`);
    return `${points.join("")}Z`;
  }

  point(i, value) {
    return `${this.x(this.drawn.ages[i]).toFixed(1)} ${this.y(value).toFixed(1)}`;
  }

  cursor() {
    const i = this.selectedIndex();
    if (i === null) return "";
    const x = this.x(this.drawn.ages[i]);
    const dots = this.lines.map((line, n) => {
      const value = this.levels[n][i];
      return value === null
        ? ""
        : svg("circle", { class: `dot ${line.tone}`, cx: x, cy: this.y(value), r: 3.5 });
    });
    const rule = { class: "pointer", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM };
    return svg("g", {}, svg("line", rule), ...dots);
  }

  /** The sample nearest to where the pointer or the keyboard looks, null if they do not. */
  selectedIndex() {
    const { ages, columns } = this.drawn;
    if (this.selected === null) return null;
    const distance = (i) => Math.abs(ages[i] - this.selected);
    const filled = [...ages.keys()].filter((i) => columns.some((column) => column[i] !== null));
    return filled.sort((a, b) => distance(a) - distance(b))[0] ?? null;
  }

  /** Values and time of the selected sample, beside it and for screen readers. */
  tell() {
    const i = this.selectedIndex();
    this.tip.hidden = i === null;
    if (i === null) return;
    const { ages, columns, at } = this.drawn;
    const time = clock(new Date(at - 1000 * ages[i]));
    const values = this.lines.map((line, n) => [line, this.written(columns[n][i])]);
    this.tip.replaceChildren(
      element("time", {}, time),
      ...values.map(([line, value]) =>
        element("div", { class: "pair" }, key(line), line.name, element("b", {}, value)),
      ),
    );
    this.place(this.x(ages[i]));
    if (this.node.matches(":focus-visible")) {
      setText(this.spoken, `${time}: ${values.map(([l, v]) => `${l.name} ${v}`).join(", ")}`);
    }
  }

  /** Put the tip where there is more room beside `left`. */
  place(left) {
    const onTheLeft = left > (LEFT + this.width) / 2;
    this.tip.style.left = onTheLeft ? "auto" : `${left + 10}px`;
    this.tip.style.right = onTheLeft ? `${this.width - left + 10}px` : "auto";
  }

  written(value) {
    return value === null ? "none" : this.format(value);
  }

  select(age) {
    this.selected = age;
    this.paint();
  }

  listen() {
    const { node } = this;
    new ResizeObserver(() => this.paint()).observe(node);
    const point = (event) => {
      const { left } = node.getBoundingClientRect();
      if (this.drawn) this.select(this.age(event.clientX - left));
    };
    node.addEventListener("pointermove", point);
    node.addEventListener("pointerdown", point);
    // A finger that was lifted has pointed; it takes back what it points at elsewhere.
    node.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch") this.select(null);
    });
    node.addEventListener("blur", () => this.select(null));
    node.addEventListener("keydown", (event) => this.onKey(event));
  }

  onKey(event) {
    const ages = this.drawn?.ages ?? [];
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -LEAP_SAMPLES, PageDown: LEAP_SAMPLES };
    const last = ages.length - 1;
    const from = this.drawn && (this.selectedIndex() ?? last);
    const to = { Home: 0, End: last }[event.key] ?? from + (step[event.key] ?? NaN);
    if (event.key === "Escape") this.select(null);
    if (!ages.length || Number.isNaN(to)) return;
    event.preventDefault();
    this.select(ages[Math.min(Math.max(to, 0), last)]);
  }
}

/** A sample of how a line is drawn. */
export function key(line) {
  return element("i", { class: `key ${line.tone}${line.dashed ? " dashed" : ""}` });
}

function text(x, y, content, anchor) {
  return svg("text", { x, y, "text-anchor": anchor }, content);
}
