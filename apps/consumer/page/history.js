/** Rate and lag over the last hour, as the service keeps them; what this page saw before a restart of the service stays. */

import { arrange, byId, cell, count, drawn, element, say, time, timeElement } from "./dom.js";

const HOUR = 3_600_000; // ms
const SHORTEST = 300_000; // ms that the drawing goes back at least
const SHORT_RATE = 500; // ms between two counts: a rate over less is a guess
const WIDTH = 600;
const HEIGHT = 100;
const KINDS = ["consumed", "dead_lettered", "lag"];

let last = null; // the count that the rate of now is measured from

/** Show the records a second right now; without a status, that it is not known. A service that started again begins at 0. */
export function showRate(status) {
  const records = status && status.messages_consumed_count + status.dead_lettered_count;
  const seen = status && { at: performance.now(), records, of: status.started_at };
  if (last && seen && seen.at - last.at < SHORT_RATE) return;
  const known = last && seen && last.of === seen.of && seen.records >= last.records;
  if (known) say(byId("rate-now"), count(Math.round(((seen.records - last.records) * 1000) / (seen.at - last.at))));
  else if (!seen) say(byId("rate-now"), "–");
  last = seen;
}

export class History {
  #points = new Map();
  #gap = 0;
  #from = 0;
  #until = 0;
  #cursors = [];

  constructor() {
    for (const [name, kinds] of [["rate-line", ["consumed", "dead_lettered"]], ["lag-line", ["lag"]]]) {
      const svg = byId(name);
      const cursor = drawn("path", { class: "cursor" });
      svg.append(...kinds.map((kind) => drawn("path", { class: `line ${kind}`, "data-kind": kind })), cursor);
      this.#cursors.push(cursor);
      svg.addEventListener("pointermove", (event) => this.#point(event));
      svg.addEventListener("pointerleave", () => this.#leave());
    }
  }

  /** Take in what the service answers, and draw it. */
  show({ step_seconds: step, points }) {
    this.#gap = step * 2_500;
    for (const point of points) this.#points.set(point.at, point);
    const now = Date.now();
    for (const at of this.#points.keys()) if (at < now - HOUR) this.#points.delete(at);
    const all = this.#sorted();
    this.#until = Math.max(now, all.at(-1)?.at ?? 0);
    this.#from = Math.min(this.#until - SHORTEST, all[0]?.at ?? now);
    const mostRate = roundedUp(Math.max(...all.map(({ consumed, dead_lettered: dead }) => Math.max(consumed, dead)), 0));
    const mostLag = roundedUp(Math.max(...all.map(({ lag }) => lag ?? 0), 0));
    for (const path of document.querySelectorAll("path[data-kind]")) {
      path.setAttribute("d", this.#line(all, path.dataset.kind, path.dataset.kind === "lag" ? mostLag : mostRate));
    }
    say(byId("rate-most"), `up to ${count(mostRate)}`);
    say(byId("lag-most"), `up to ${count(mostLag)}`);
    say(byId("history-from"), time(this.#from));
    this.#describe(all);
  }

  #sorted() {
    return [...this.#points.values()].sort((one, other) => one.at - other.at);
  }

  /** A line through the points, broken where some are missing. */
  #line(points, kind, most) {
    let last = null;
    return points
      .filter((point) => point[kind] !== null)
      .map((point) => {
        const joined = last !== null && point.at - last <= this.#gap;
        last = point.at;
        return `${joined ? "L" : "M"}${this.#x(point.at)} ${(HEIGHT - 2 - (point[kind] / most) * (HEIGHT - 4)).toFixed(1)}${joined ? "" : "h.1"}`;
      })
      .join("");
  }

  #x(at) {
    return (((at - this.#from) / (this.#until - this.#from)) * WIDTH).toFixed(1);
  }

  #describe(all) {
    const last = all.at(-1);
    byId("rate-line").setAttribute("aria-label", last ? `${sentence(last)}; the table below has the last hour` : "no point yet");
    byId("lag-line").setAttribute("aria-label", last ? `a lag of ${count(last.lag)} records at ${time(last.at)}` : "no point yet");
    const minutes = [...Map.groupBy(all, ({ at }) => Math.floor(at / 60_000)).values()].map((points) => points.at(-1)).reverse();
    const cells = (point) => KINDS.map((kind) => cell("number", count(point[kind])));
    const row = (point) => element("tr", {}, element("th", { scope: "row" }, timeElement(point.at)), ...cells(point));
    arrange(byId("history-rows"), minutes, ({ at }) => String(at), row);
    this.#leave();
  }

  #point(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const at = this.#from + ((event.clientX - box.left) / box.width) * (this.#until - this.#from);
    const near = this.#sorted().reduce((best, point) => (best && Math.abs(best.at - at) <= Math.abs(point.at - at) ? best : point), null);
    if (near === null) return;
    const missing = Math.abs(near.at - at) > this.#gap;
    say(byId("history-at"), missing ? `${time(at)}: the service did not run, or nobody looked` : sentence(near));
    for (const cursor of this.#cursors) cursor.setAttribute("d", `M${this.#x(missing ? at : near.at)} 0v${HEIGHT}`);
  }

  #leave() {
    const last = this.#sorted().at(-1);
    say(byId("history-at"), last ? sentence(last) : "The first point follows after 10 s.");
    for (const cursor of this.#cursors) cursor.removeAttribute("d");
  }
}

const sentence = ({ at, consumed, dead_lettered: dead, lag }) =>
  `${time(at)}: ${count(consumed)} consumed/s, ${count(dead)} dead-lettered/s, lag ${lag === null ? "not known" : count(lag)}`;

/** The next of 10, 20, 50, 100, 200 …: a scale that seldom changes. */
function roundedUp(value) {
  let power = 10;
  while (power * 10 <= value) power *= 10;
  return [1, 2, 5, 10].map((step) => step * power).find((most) => most >= value);
}
