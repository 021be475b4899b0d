// The server's rows of the last 15 minutes, and what can be computed from them.

const SPAN_SECONDS = 900;
// Traffic comes in bursts, and a share of few requests says little.
const RATE_SECONDS = 10;
const SHARE_SECONDS = 30;

export class History {
  constructor() {
    this.forget();
  }

  /** What has come before is another server's. */
  forget() {
    this.beganAt = null;
    this.taken = 0;
    this.rows = [];
  }

  /** Add a reply's rows; false if they belong to another life of the server than ours. */
  add(reply) {
    if (this.beganAt !== null && this.beganAt !== reply.began_at) return false;
    this.beganAt = reply.began_at;
    this.age = reply.age;
    this.sampleSeconds = reply.sample_seconds;
    this.place = Object.fromEntries(reply.columns.map((name, index) => [name, index]));
    this.taken = reply.taken;
    this.rows.push(...reply.rows);
    const oldest = reply.age - SPAN_SECONDS;
    this.rows = this.rows.filter((row) => row[0] >= oldest);
    return true;
  }

  /** Seconds before now at which each row was taken. */
  ages() {
    return this.rows.map((row) => this.age - row[0]);
  }

  /** A column as it is. */
  level(name) {
    return this.rows.map((row) => row[this.place[name]]);
  }

  /** How much a column has grown in all the rows. */
  growth(name) {
    const column = this.level(name);
    return column.length ? column.at(-1) - column[0] : 0;
  }

  /** Growth a second of a column over the last seconds, by row; the first has none. */
  rate(name) {
    const column = this.level(name);
    return this.windows(RATE_SECONDS).map((from, i) =>
      from < i ? (column[i] - column[from]) / (this.rows[i][0] - this.rows[from][0]) : null,
    );
  }

  /** Growth of `part` in percent of that of `whole` over half a minute; none without any. */
  share(part, whole) {
    const [parts, wholes] = [this.level(part), this.level(whole)];
    return this.windows(SHARE_SECONDS).map((from, i) => {
      const all = wholes[i] - wholes[from];
      return all > 0 ? (100 * (parts[i] - parts[from])) / all : null;
    });
  }

  /** For each row the oldest that is at most `seconds` older. */
  windows(seconds) {
    let from = 0;
    return this.rows.map((row) => {
      while (row[0] - this.rows[from][0] > seconds) from += 1;
      return from;
    });
  }
}
