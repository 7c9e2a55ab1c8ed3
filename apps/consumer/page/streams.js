/** The streams of this service, and the one that the page shows: that of its address, or the first. */

import { address, addressOf, onAddress } from "./address.js";
import { arrange, byId, count, element, say } from "./dom.js";

export const producer = document.querySelector("meta[name=producer-url]").content; // "" for none
export const names = document.querySelector("meta[name=streams]").content.split(" ");
const asked = address().stream ?? names[0];
export const stream = names.includes(asked) ? asked : names[0];
const dead = {}; // how many dead letters can be sent back, by the name of each stream once that was read

/** Show state, health, lag and dead letters of each stream as a link to its tab; the style hides a single one. */
export function showStreams(streams, healths) {
  arrange(byId("streams"), names, String, newItem, (item, name) => {
    const { state = "unknown", lag } = streams[name] ?? {};
    const health = healths[name]?.status ?? "unknown";
    showPill(item.querySelector(".pill"), state === "running" && health === "unavailable" ? health : state, health);
    say(item.querySelector(".lag"), lag > 0 ? `lag ${count(lag)}` : "");
  });
  names.forEach((name) => showDead(name));
  pointLinks();
}

/** Show how many dead letters of a stream can be sent back, at its name and at the tab: everywhere from one answer. */
export function showDead(name, reasons) {
  if (reasons) dead[name] = count(reasons.redrivable) + (reasons.more ? "+" : "");
  const number = dead[name] ?? "…";
  const place = byId("streams").querySelector(`[data-name="${name}"] .dead`);
  if (place) say(place, number === "0" ? "" : `${number} dead`);
  if (name !== stream) return;
  say(byId("dead-count"), number);
  byId("dead-count").classList.toggle("some", !["0", "…"].includes(number));
}

export function showPill(pill, state, health) {
  Object.assign(pill.dataset, { state, health });
  say(pill, state);
}

/** Name the state of the shown stream in the title of the page, and the other streams that are not well. */
export function showTitle(state) {
  const ill = [...byId("streams").querySelectorAll("a:not([aria-current]) .pill:not([data-state=running][data-health=ok])")];
  const others = ill.map((pill) => `${pill.parentElement.dataset.name} ${pill.textContent}`);
  document.title = [state, ...(names.length > 1 ? [stream] : []), ...others, "Consumer"].join(" · ");
}

function newItem(name) {
  const waiting = element("small", {}, element("span", { class: "lag" }), element("span", { class: "dead" }));
  const link = element("a", { "data-name": name }, name, element("span", { class: "pill" }), waiting);
  link.ariaCurrent = name === stream ? "page" : null;
  return element("li", {}, link);
}

const pointLinks = () => byId("streams").querySelectorAll("a").forEach((link) => link.setAttribute("href", addressOf(address().tab, { stream: link.dataset.name })));

onAddress(pointLinks);
if (asked !== stream) say(byId("no-stream"), `There is no stream "${asked}" here: this is ${stream}.`);
