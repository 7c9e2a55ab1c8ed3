/** Asks the service again and again, gently; says what cannot be read, why and since when. */

import { failure } from "./api.js";
import { arrange, byId, element, say, time } from "./dom.js";

/** Why a button is off while the service does not answer. */
export const GONE = "The service does not answer.";

const LATE = 4_000; // ms after which what was read before is not current; with Kafka out of reach a status takes 3 s
const failing = new Map();

/** Do some work, and wait `pause` milliseconds until the next time, for ever; not while nobody looks. */
export async function poll(pause, work) {
  for (;;) {
    while (document.hidden) await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
    await work();
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

/** Read and show; what fails, or takes too long, is said and dimmed, and `lose` shows that it cannot be read. */
export async function look({ name, read, show, lose = () => {}, when = () => true }) {
  const began = Date.now();
  const fail = (error) => {
    lose(error);
    const since = failing.get(name)?.since ?? began;
    failing.set(name, { reason: error.message, since, gone: error.problem === undefined });
    showFailing();
  };
  const late = setTimeout(fail, LATE, failure(`no answer for ${LATE / 1000} s`));
  try {
    if (when()) show(await read());
    if (failing.delete(name)) showFailing();
  } catch (error) {
    fail(error);
  } finally {
    clearTimeout(late);
  }
}

function showFailing() {
  document.body.dataset.failing = [...failing.keys()].join(" ");
  const make = () => element("p", { class: "trouble" });
  arrange(byId("notices"), linesOfFailing(), (line) => line.key, make, (item, line) => say(item, line.text));
}

/** One line a reason: when the whole service is gone, that is one thing and not four. */
function linesOfFailing() {
  const state = failing.get("state");
  if (state?.gone) {
    return [{ key: "gone", text: `Service gone since ${time(state.since)}: ${state.reason}. What is dimmed is from before. Trying again.` }];
  }
  return [...Map.groupBy(failing, ([, { reason }]) => reason)].map(([reason, sources]) => {
    const names = sources.map(([source]) => source).join(", ");
    const since = Math.min(...sources.map(([, failed]) => failed.since));
    return { key: reason, text: `Cannot read ${names}: ${reason} (since ${time(since)}). Trying again.` };
  });
}
