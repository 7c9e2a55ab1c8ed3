/** Rate and lag of the last hour, as the service keeps them; points from before a restart stay while the page is open. */

import { arrange, byId, cell, count, element, say, timeElement } from "./dom.js";

const HOUR_MS = 3_600_000;
const MIN_SPAN_MS = 300_000; // the drawing goes back at least this far
const MIN_RATE_SPAN_MS = 500; // a rate over a shorter time is a guess
const [WIDTH, HEIGHT] = [600, 100];
let last = null; // the counts that the current rates are measured from
let rates = {}; // the current ones, by kind; none before the second status
let now = null; // the point of this moment, with which the drawing ends as the head does
const points = new Map(); // by time
let gap = 0; // milliseconds between two points that mean the service was down
let [from, until] = [0, 0];

/** Show the current rate, and lag and rate as the end of the drawing; without a status there is none. */
export function showNow(status) {
  const seen = status && { at: performance.now(), of: status.started_at, consumed: status.messages_consumed_count, dead_lettered: status.dead_lettered_count };
  if (!(last && seen && seen.at - last.at < MIN_RATE_SPAN_MS)) {
    const isKnown = last && seen && last.of === seen.of; // a restarted service counts from 0
    const rate = (kind) => Math.round(((seen[kind] - last[kind]) * 10_000) / (seen.at - last.at)) / 10;
    rates = isKnown ? { consumed: rate("consumed"), dead_lettered: rate("dead_lettered") } : {};
    say(byId("rate-now"), isKnown ? count(Math.round(rates.consumed + rates.dead_lettered)) : "–");
    last = seen;
  }
  now = status && { at: Math.max(Date.now(), ...points.keys()), ...rates, lag: status.lag }; // the service's clock may be ahead
  drawAll();
}

export function showHistory({ step_seconds: step, points: read }) {
  gap = step * 2_500;
  for (const point of read) points.set(point.at, point);
  for (const at of points.keys()) if (at < Date.now() - HOUR_MS) points.delete(at);
  drawAll();
  const minutes = [...Map.groupBy(sorted(), ({ at }) => Math.floor(at / 60_000)).values()].map((ones) => ones.at(-1)).reverse();
  arrange(byId("history-rows"), minutes, ({ at }) => String(at), (point) => {
    const cells = ["consumed", "dead_lettered", "lag"].map((kind) => cell("number", count(point[kind])));
    return element("tr", {}, element("th", { scope: "row" }, timeElement(point.at)), ...cells);
  });
}

function drawAll() {
  const all = sorted();
  until = Math.max(Date.now(), all.at(-1)?.at ?? 0);
  from = Math.min(until - MIN_SPAN_MS, all[0]?.at ?? until);
  draw("rate", all, ["consumed", "dead_lettered"]);
  draw("lag", all, ["lag"]);
  say(byId("history-from"), timeElement(from));
  if (byId("history-at").textContent.startsWith("Now") || document.querySelector("figure svg:hover") === null) showLast();
}

const sorted = () => [...points.values(), ...(now ? [now] : [])].sort((one, other) => one.at - other.at);
const xOf = (at) => (((at - from) / (until - from)) * WIDTH).toFixed(1);

function draw(name, all, kinds) {
  const most = roundedUp(Math.max(0, ...all.flatMap((point) => kinds.map((kind) => point[kind] ?? 0))));
  const svg = byId(`${name}-line`);
  for (const kind of kinds) svg.querySelector(`.${kind}`).setAttribute("d", lineOf(all, kind, most));
  svg.ariaLabel = all.length > 0 ? `${timeElement(all.at(-1).at).textContent}${words(all.at(-1))}; the table below has more` : "no point yet";
  say(byId(`${name}-most`), `up to ${count(most)}`);
}

function lineOf(all, kind, most) {
  let before = null;
  const piece = (point) => {
    const joined = before !== null && point.at - before <= gap;
    before = point.at;
    return `${joined ? "L" : "M"}${xOf(point.at)} ${(HEIGHT - 2 - (point[kind] / most) * (HEIGHT - 4)).toFixed(1)}${joined ? "" : "h.1"}`;
  };
  return all.filter((point) => point[kind] != null).map(piece).join("");
}

function showPoint({ currentTarget, clientX }) {
  const box = currentTarget.getBoundingClientRect();
  const at = from + ((clientX - box.left) / box.width) * (until - from);
  const [near] = sorted().sort((one, other) => Math.abs(one.at - at) - Math.abs(other.at - at));
  if (near === undefined) return;
  const missing = Math.abs(near.at - at) > gap;
  say(byId("history-at"), ...(missing ? ["At ", timeElement(at), ": the service did not run, or nobody looked"] : sentence(near)));
  for (const cursor of document.querySelectorAll(".cursor")) cursor.setAttribute("d", `M${xOf(missing ? at : near.at)} 0v${HEIGHT}`);
}

function showLast() {
  const newest = sorted().at(-1);
  say(byId("history-at"), ...(newest ? sentence(newest) : ["…"]));
  for (const cursor of document.querySelectorAll(".cursor")) cursor.removeAttribute("d");
}

const words = ({ consumed, dead_lettered: dead, lag }) => `: ${count(consumed)} consumed/s, ${count(dead)} dead-lettered/s, lag ${lag === null ? "not known" : count(lag)}`;
const sentence = (point) => [...(point === now ? ["Now"] : ["At ", timeElement(point.at)]), words(point)];

/** The next of 10, 20, 50, 100, 200 …: a scale that seldom changes. */
const roundedUp = (value) => [1, 2, 5, 10].map((step) => step * 10 ** Math.floor(Math.log10(Math.max(10, value)))).find((most) => most >= value);

for (const svg of document.querySelectorAll("figure svg")) Object.assign(svg, { onpointermove: showPoint, onpointerleave: showLast });
