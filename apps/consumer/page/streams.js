/** The streams of this service, and the one that the page shows: the one in its address, or the first. */

import { arrange, byId, element, say } from "./dom.js";

const names = document.querySelector("meta[name=streams]").content.split(" ");
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

/** Show the state of each stream, as a link to it; with one stream there is nothing to choose. */
export function showStreams(states) {
  const list = byId("streams");
  list.parentElement.hidden = names.length === 1;
  arrange(list, names, (name) => name, newLink, (link, name) => showStreamState(link, states[name] ?? "unknown"));
}

function newLink(name) {
  const link = element("a", { href: `?${new URLSearchParams({ stream: name })}` }, name, element("span", { class: "pill" }));
  if (name === stream) link.setAttribute("aria-current", "page");
  return element("li", {}, link);
}

function showStreamState(item, state) {
  const pill = item.querySelector(".pill");
  pill.dataset.state = state;
  say(pill, state);
}
