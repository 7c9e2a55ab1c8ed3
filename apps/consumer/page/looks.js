/** Polls the service; shows what cannot be read, why and since when. */

import { failure } from "./api.js";
import { arrange, byId, element, say, timeElement } from "./dom.js";

export const GONE = "The service does not answer.";
export const NO_KAFKA = "The service does not reach Kafka.";
const LATE_MS = 4_000; // what is shown is outdated then; with Kafka out of reach a status takes 3 s
const AGAIN_MS = 3_000; // what failed is read again after this time
const failing = new Map();
const before = new Set(); // what was read once
export const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Repeat `work` until it returns false, with a pause in milliseconds in between; wait while the page is hidden. */
export async function poll(pause, work) {
  for (;;) {
    while (document.hidden) await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
    const next = await work();
    if (next === false) return;
    await wait(next === AGAIN_MS ? Math.min(pause, next) : pause);
  }
}

/** Read and show. On a failure, which `read` may also announce, or a late answer, show the reason, dim old values and call `lose`. */
export async function look({ name, read, show, lose = () => {}, when = () => true }) {
  const began = Date.now();
  const fail = (error) => {
    lose(error);
    const since = failing.get(name)?.since ?? began;
    const reason = error.message.replace(/^Kafka (is out of reach: |did not answer in time).*/, "Kafka is out of reach"); // the head says which and why
    failing.set(name, { reason, since, gone: error.problem === undefined });
    showFailing();
  };
  const late = setTimeout(fail, LATE_MS, failure(`no answer for ${LATE_MS / 1000} s`));
  try {
    if (when()) (show(await read(fail)), before.add(name));
    if (failing.delete(name)) showFailing();
  } catch (error) {
    fail(error);
    return AGAIN_MS;
  } finally {
    clearTimeout(late);
  }
}

function showFailing() {
  const old = [...failing.keys()].filter((name) => before.has(name));
  document.body.dataset.failing = old.join(" ");
  const dimmed = old.length > 0 ? " What is dimmed is from before." : "";
  const state = failing.get("state");
  const gone = state?.gone && { key: "gone", contents: ["Service gone since ", timeElement(state.since), `: ${state.reason}.${dimmed} Trying again.`] };
  const what = (reason, sources) => (reason === "Kafka is out of reach" ? `${reason}.${dimmed}` : `Cannot read ${sources.map(([name]) => name).join(", ")}: ${reason}.`);
  const lines = gone ? [gone] : [...Map.groupBy(failing, ([, { reason }]) => reason)].map(([reason, sources]) => ({ key: reason, contents: [`${what(reason, sources)} Trying again.`] }));
  arrange(byId("notices"), lines, (line) => line.key, () => element("p", { class: "trouble" }), (item, { contents }) => say(item, ...contents));
}
