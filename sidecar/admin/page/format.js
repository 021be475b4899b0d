// Numbers as people read them. What is kept is in powers of 1024, what is moved in powers of 1000.

export const NOTHING = "\u2013";
const MEMORY = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const MOVED = ["B", "kB", "MB", "GB", "TB", "PB"];

export const bytes = (value) => scaled(value, 1024, MEMORY);
export const moved = (value) => scaled(value, 1000, MOVED);
export const rate = (value) => `${moved(value)}/s`;
export const count = (value) => Math.round(value).toLocaleString("en-US");
export const perSecond = (value) => `${value < 10 ? digits(value) : count(value)}/s`;

/** `part` of `whole`; without a whole there is no share. */
export function percent(part, whole) {
  if (!(whole > 0)) return NOTHING;
  const tenths = Math.round((1000 * part) / whole) / 10;
  return `${tenths % 1 ? tenths.toFixed(1) : tenths}\u202f%`;
}

/** "9.9 of 16 GiB", or "212 MiB of 16 GiB". */
export function bytesOf(part, whole) {
  const [inUse, all] = [bytes(part), bytes(whole)];
  const unit = all.slice(all.indexOf(" "));
  return `${inUse.endsWith(unit) ? inUse.slice(0, -unit.length) : inUse} of ${all}`;
}

/** A span of time in its two largest units. */
export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** Rounded, so that it does not change with each look. */
export function ago(seconds) {
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} days ago`;
}

export const clock = (date) => date.toLocaleTimeString([], { hourCycle: "h23" });

/** "1 worker", "2 workers". */
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** In the first unit of which it is less than a thousand. */
function scaled(value, base, units) {
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= base;
    unit += 1;
  }
  return `${digits(value)} ${units[unit]}`;
}

/** Three digits, as far as they say something. */
function digits(value) {
  if (value === 0) return "0";
  if (value < 10 && value !== Math.floor(value)) return value.toFixed(2);
  return value < 100 && value !== Math.floor(value) ? value.toFixed(1) : count(value);
}
