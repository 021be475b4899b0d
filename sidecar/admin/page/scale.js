// How high the values of a chart are, and where its scale ends.

const ROUND = [1, 2, 4, 5, 8];

/** Each column on top of those before it. */
export function stack(columns) {
  let below = columns[0].map(() => 0);
  return columns.map((column) => {
    below = column.map((value, i) => (value === null ? null : value + (below[i] ?? 0)));
    return below;
  });
}

/** The next round number that is not below `value`, in the units of `base`. */
export function niceTop(value, base) {
  if (!(value > 0)) return 1;
  const unit = base ** Math.floor(Math.log(value) / Math.log(base));
  const steps = [1, 10, 100].flatMap((decade) => ROUND.map((step) => step * decade));
  return unit * (steps.find((step) => step * unit >= value) ?? base);
}
