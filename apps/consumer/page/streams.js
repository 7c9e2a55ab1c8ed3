/** The streams of this service, and the one that the page shows: that of its address, or the first. */

import { address, onAddress } from "./address.js";
import { arrange, byId, count, element, say } from "./dom.js";

/** The names of all streams of this service. */
export const names = document.querySelector("meta[name=streams]").content.split(" ");
const asked = address().stream ?? names[0];

/** The name of the stream that the page shows. */
export const stream = names.includes(asked) ? asked : names[0];

/** Show state, health, lag and dead letters of each stream as a link to its tab; hide the choice with a single stream. */
export function showStreams(streams, healths, letters) {
  const list = byId("streams");
  list.parentElement.hidden = names.length === 1;
  arrange(list, names, String, newLink, (item, name) => {
    const { state = "unknown", lag } = streams[name] ?? {};
    const health = healths[name]?.status ?? "unknown";
    showPill(item.querySelector(".pill"), state === "running" && health === "unavailable" ? health : state, health);
    const dead = name === stream ? byId("dead-count").textContent : count(letters[name] ?? 0);
    const waiting = [lag > 0 && `lag ${count(lag)}`, !["", "0"].includes(dead) && `${dead} dead`];
    say(item.querySelector("small"), lag === undefined ? "" : waiting.filter(Boolean).join(", "));
  });
  pointLinks();
}

/** Show a state as a coloured word. */
export function showPill(pill, state, health) {
  pill.dataset.state = state;
  pill.dataset.health = health;
  say(pill, state);
}

/** Name the state of the shown stream in the title of the page, and the other streams that are not well. */
export function showTitle(state) {
  const ill = [...byId("streams").querySelectorAll("a:not([aria-current]) .pill:not([data-state=running][data-health=ok])")];
  const others = ill.map((pill) => `${pill.parentElement.dataset.name} ${pill.textContent}`);
  document.title = [state, ...(names.length > 1 ? [stream] : []), ...others, "Consumer"].join(" · ");
}

function newLink(name) {
  const link = element("a", { "data-name": name }, name, element("span", { class: "pill" }), element("small"));
  link.ariaCurrent = name === stream ? "page" : null;
  return element("li", {}, link);
}

function pointLinks() {
  const { tab } = address();
  for (const link of byId("streams").querySelectorAll("a")) {
    link.setAttribute("href", `?${new URLSearchParams({ stream: link.dataset.name, ...(tab && { tab }) })}`);
  }
}

onAddress(pointLinks);
if (asked !== stream) say(byId("no-stream"), `There is no stream "${asked}" here: this is ${stream}.`);
