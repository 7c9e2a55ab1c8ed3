/** The streams of this service, and the one that the page shows: that of its address, or the first. */

import { address, onAddress } from "./address.js";
import { arrange, byId, element, say } from "./dom.js";

/** The names of all streams of this service. */
export const names = document.querySelector("meta[name=streams]").content.split(" ");
const asked = address().stream ?? names[0];

/** The name of the stream that the page shows. */
export const stream = names.includes(asked) ? asked : names[0];

/** The title of the page; it names the stream when there are several. */
export const title = names.length === 1 ? "Consumer" : `${stream} · Consumer`;

/** Show state and health of each stream as a link to its tab; hide the choice with a single stream. */
export function showStreams(streams, healths) {
  const list = byId("streams");
  list.parentElement.hidden = names.length === 1;
  arrange(list, names, String, newLink, (item, name) => {
    showPill(item.querySelector(".pill"), streams[name]?.state ?? "unknown", healths[name]?.status ?? "unknown");
  });
  pointLinks();
}

/** Show a state as a coloured word. */
export function showPill(pill, state, health) {
  pill.dataset.state = state;
  pill.dataset.health = health;
  say(pill, state);
}

function newLink(name) {
  const link = element("a", { "data-name": name }, name, element("span", { class: "pill" }));
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
