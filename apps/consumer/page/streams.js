/** The streams of this service, and the one that the page shows: the one in its address, or the first. */

import { address, onAddress } from "./address.js";
import { arrange, byId, element, say } from "./dom.js";

/** The names of all streams of this service. */
export const names = document.querySelector("meta[name=streams]").content.split(" ");
const asked = new URLSearchParams(location.search).get("stream") ?? names[0];

/** The name of the stream that the page shows. */
export const stream = names.includes(asked) ? asked : names[0];

/** What the page is called: one of several streams is named. */
export const title = names.length === 1 ? "Consumer" : `${stream} · Consumer`;

/** Show that the stream in the address is not one of this service. */
export function refuseUnknownStream() {
  if (asked === stream) return;
  const unknown = byId("no-stream");
  unknown.hidden = false;
  say(unknown, `There is no stream "${asked}" here: this is ${stream}.`);
}

/** Show state and health of each stream, as a link to the same tab of it; with one stream there is nothing to choose. */
export function showStreams(states, healths) {
  const list = byId("streams");
  list.parentElement.hidden = names.length === 1;
  arrange(list, names, (name) => name, newLink, (item, name) => {
    point(item.firstElementChild, name);
    showPill(item.querySelector(".pill"), states[name] ?? "unknown", healths[name]?.status ?? "unknown");
  });
}

/** Show a state as a word in its colour. */
export function showPill(pill, state, health) {
  pill.dataset.state = state;
  pill.dataset.health = health;
  say(pill, state);
}

function point(link, name) {
  const { tab } = address();
  link.setAttribute("href", `?${new URLSearchParams({ stream: name, ...(tab && { tab }) })}`);
}

function newLink(name) {
  const link = element("a", {}, name, element("span", { class: "pill" }));
  if (name === stream) link.setAttribute("aria-current", "page");
  return element("li", {}, link);
}

onAddress(() => byId("streams").querySelectorAll("a").forEach((link, index) => point(link, names[index])));
