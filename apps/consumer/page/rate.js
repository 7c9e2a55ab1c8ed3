/** The line of records a second, computed from the counts that the service tells. */

import { count, drawn, say } from "./dom.js";

const SPAN = 5 * 60_000; // ms that the line goes back
const SHORTEST = 500; // ms between two counts: a rate over less is a guess
const GAP = 5_000; // ms without a count after which the line is broken
const WIDTH = 300;
const HEIGHT = 100;

export class RateLine {
  #last = null;
  #points = [];
  #path = drawn("path", { class: "line" });
  #svg;
  #now;
  #most;

  constructor(svg, now, most) {
    this.#svg = svg;
    this.#now = now;
    this.#most = most;
    svg.append(this.#path);
  }

  /** Take in a status: good and bad records count, and a service that has started again begins at 0. */
  add(status) {
    const seen = {
      at: performance.now(),
      records: status.messages_consumed_count + status.dead_lettered_count,
      of: status.started_at,
    };
    const last = this.#last;
    if (last !== null && seen.at - last.at < SHORTEST) return;
    this.#last = seen;
    if (last === null || last.of !== seen.of || seen.records < last.records) return;
    const rate = ((seen.records - last.records) * 1000) / (seen.at - last.at);
    this.#points.push({ at: seen.at, rate, broken: seen.at - last.at > GAP });
    this.#points = this.#points.filter((point) => seen.at - point.at <= SPAN);
    this.#draw(seen.at, rate);
  }

  /** Say that the rate is not known now. */
  interrupt() {
    say(this.#now, "–");
    this.#svg.setAttribute("aria-label", "not known now");
  }

  #draw(now, rate) {
    const most = roundedUp(Math.max(...this.#points.map((point) => point.rate)));
    const steps = this.#points.map((point, index) => {
      const x = WIDTH - ((now - point.at) / SPAN) * WIDTH;
      const y = HEIGHT - (point.rate / most) * (HEIGHT - 2) - 1;
      return `${index === 0 || point.broken ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
    });
    this.#path.setAttribute("d", steps.join(""));
    say(this.#now, count(Math.round(rate)));
    say(this.#most, count(most));
    this.#svg.setAttribute("aria-label", `${count(Math.round(rate))} records a second now`);
  }
}

/** The next of 10, 20, 50, 100, 200 …: a scale that seldom changes. */
function roundedUp(value) {
  let power = 10;
  while (power * 10 <= value) power *= 10;
  return [1, 2, 5, 10].map((step) => step * power).find((most) => most >= value);
}
