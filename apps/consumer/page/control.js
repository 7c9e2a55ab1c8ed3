/** The state of the consumer, and the buttons that change it. */

import { addressOf } from "./address.js";
import { keepApiKey, post, refusals } from "./api.js";
import { confirmed } from "./dialogs.js";
import { arrange, byId, count, element, inside, onSubmit, plural, report, rfc3339, say, time, timeElement } from "./dom.js";
import { showPill, title } from "./streams.js";

const LIVELY = ["starting", "running", "retrying", "reconnecting"];

/** Each command: when it makes sense, why not in another state, and which button to press next. */
const COMMANDS = {
  start: { path: "consumers/start", name: "Start", while: ["stopped", "halted"], next: "stop", not: () => "It consumes already." },
  stop: { path: "consumers/stop", name: "Stop", while: [...LIVELY, "paused"], next: "start", not: (state) => `It is ${state} already.` },
  pause: { path: "consumers/pause", name: "Pause", while: LIVELY, next: "resume", not: (state) => (state === "paused" ? "It is paused already." : `Nothing is read while it is ${state}.`) },
  resume: { path: "consumers/resume", name: "Resume", while: ["paused"], next: "pause", not: () => "It is not paused." },
  accept: { path: "consumers/start", body: { accept: true }, name: "Start", while: ["halted", "retrying"], next: "stop", not: () => "No bad records wait." },
};

/** What to do in a state that is not good. */
const ADVICE = {
  retrying: "The handler fails, and its records are retried. Consuming goes on by itself once the handler works again.",
  halted: "Too many records in a row were refused: usually a wrong deploy, or a producer with another schema. Deploy a fix and start, or start and dead-letter the bad records.",
  reconnecting: "Kafka is out of reach or refuses this service. The service connects again by itself.",
};

const GONE = "The service does not answer.";
let lag = null;

/** Wire the buttons, the seek and the field for the API key; `refresh` reads and shows the state. */
export function control(refresh) {
  const said = byId("control-said");
  for (const [name, command] of Object.entries(COMMANDS)) byId(name).addEventListener("click", () => run(name, command, said, refresh));
  const seek = byId("seek");
  seek.elements.to.addEventListener("change", () => {
    for (const label of seek.querySelectorAll("[data-for]")) {
      label.hidden = label.dataset.for !== seek.elements.to.value;
      label.querySelector("input").required = !label.hidden;
    }
  });
  onSubmit(seek, (fields) => report(said, "Counting …", () => goTo(place(fields))));
  askForKey(said);
  document.addEventListener("click", sayWhyOff, true);
}

/** A button that is off does nothing but say why, also when Enter in a field of its form presses it. */
function sayWhyOff(event) {
  const off = event.target.closest("button[aria-disabled=true]");
  if (off === null) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  say(off.closest("section").querySelector("output:not(form output)"), off.title);
}

async function goTo(to) {
  const { would_handle_again: again, would_skip: skipped } = await post("consumers/seek", to, { dry_run: true });
  const sentences = [
    again > 0 && `${plural(again, "record", "records")} will be handled again.`,
    skipped > 0 && `${plural(skipped, "record", "records")} will be skipped and never handled.`,
  ].filter(Boolean);
  if (!(await confirmed(sentences.join(" ") || "No record will be handled again or skipped.", "Seek"))) return "Nothing was moved.";
  const { partitions } = await post("consumers/seek", to);
  return `Consumes from there in ${plural(Object.keys(partitions).length, "partition", "partitions")}.`;
}

async function run(name, command, said, refresh) {
  const button = byId(name);
  if (button.ariaBusy === "true") return;
  if (name === "accept" && !(await confirmed(`Bad records will be dead-lettered until a batch has only good ones: up to ${plural(lag ?? 0, "record waits", "records wait")}.`, "Dead-letter the bad ones"))) return;
  button.ariaBusy = "true";
  let answered = byId("state").dataset.state;
  await report(said, "One moment …", async () => {
    ({ state: answered } = await post(command.path, command.body));
    await refresh();
    return `${command.name} at ${time(Date.now())}: the consumer is ${answered}.`;
  });
  said.dataset.state = answered;
  clearOutdated(said);
  button.ariaBusy = "false";
  const lost = document.activeElement === document.body || button.ariaDisabled === "true" || button.hidden;
  if (lost) byId(command.next).focus(); // or the keyboard is at the top of the page again
}

/** Clear the answer of a button once the state is another one: it must not contradict it. */
function clearOutdated(said) {
  const { state } = said.dataset;
  if (state === undefined || state === byId("state").dataset.state) return;
  delete said.dataset.state;
  said.classList.remove("trouble");
  say(said, "");
}

function place({ to, time: local, partition, offset }) {
  if (to === "offset") return { partition: Number(partition), offset: Number(offset) };
  return { to: to === "time" ? rfc3339(local) : to };
}

function askForKey(said) {
  const form = byId("key");
  refusals.addEventListener("refused", () => {
    byId("head").append(form); // in sight in every tab
    form.hidden = false;
    form.elements.key.focus();
  });
  onSubmit(form, ({ key }) => {
    keepApiKey(key);
    form.hidden = true;
    form.reset();
    said.classList.remove("trouble");
    say(said, "The key goes with every call from now on. Please try again.");
  });
}

/** Show what the service says of itself: its status and its health, read together. */
export function showStatus(status, health) {
  lag = status.lag;
  showState(status.state, health);
  for (const [name, command] of Object.entries(COMMANDS)) {
    turn(byId(name), command.while.includes(status.state) ? "" : command.not(status.state));
  }
  byId("accept").hidden = !COMMANDS.accept.while.includes(status.state);
  turn(byId("seek").querySelector("button"), [...LIVELY, "paused"].includes(status.state) ? "" : `Start it first: it is ${status.state}.`);
  for (const name of ["redrive-all", "redrive-some"]) turn(byId(name), "");
  say(byId("what"), `reads ${status.topic} as ${status.group_id}`);
  const advice = byId("advice");
  advice.hidden = !(status.state in ADVICE);
  say(advice, ADVICE[status.state] ?? "");
  const facts = {
    consumed: count(status.messages_consumed_count),
    "dead-lettered": count(status.dead_lettered_count),
    skipped: skipped(status),
    ...(status.throttled_seconds > 0 && { throttled: `by a quota of Kafka, for ${count(Math.ceil(status.throttled_seconds))} s more` }),
    member: status.member_id ?? "none",
    since: time(Date.parse(status.started_at)),
  };
  const row = ([name]) => element("div", {}, element("dt", {}, name), element("dd"));
  arrange(byId("facts"), Object.entries(facts), ([name]) => name, row, ({ lastElementChild }, [, text]) => say(lastElementChild, text));
  showErrors(status, health);
}

/** Turn a button off for a reason, which it shows; without one it is on. */
function turn(button, reason) {
  button.ariaDisabled = reason === "" ? null : "true";
  button.title = reason;
}

/** The records that were never consumed, and where the position moved last without consuming or a seek. */
function skipped({ skipped_count: number, moves }) {
  const last = moves.at(-1);
  return count(number) + (last ? `; partition ${last.partition} moved from ${last.before} to ${last.after}: ${last.reason}` : "");
}

/** Show the last error, with a link to the record that it names; in grey while the service is healthy, since it is over then. */
function showErrors({ last_error: error, notes }, health) {
  const line = byId("last-error");
  line.className = health.status === "ok" ? "muted" : "trouble";
  line.hidden = error === null && notes.length === 0;
  const text = [error && `Last error: ${error}`, ...notes].filter(Boolean).join("; ");
  if (line.textContent === text) return;
  const named = /-(\d+) offset (\d+)/.exec(text);
  const link = named && inside(addressOf("records", { open: `${named[1]}-${named[2]}` }), named[0].slice(1));
  const at = named ? named.index + 1 : text.length;
  line.replaceChildren(text.slice(0, at), ...(named ? [link, text.slice(named.index + named[0].length)] : []));
  line.title = text;
}

/** Show that the state cannot be read, and why. */
export function showNoState({ status, message }) {
  showState(status === 0 ? "no answer" : "unknown", { status: "unknown", detail: message });
  for (const button of [...Object.keys(COMMANDS), "redrive-all", "redrive-some"].map(byId)) turn(button, GONE);
  turn(byId("seek").querySelector("button"), GONE);
  byId("advice").hidden = true;
}

/** Show a state and the health in word and colour. */
function showState(state, { status, detail }) {
  showPill(byId("state"), state, status);
  const line = byId("health");
  line.className = status === "ok" ? "muted" : "trouble";
  say(line, `Health ${status}: ${detail}`);
  line.title = detail;
  document.title = `${status === "unavailable" ? `${state}, unavailable` : state} · ${title}`;
  clearOutdated(byId("control-said"));
}

/** Show the last rebalance of this instance, and why it happened. */
export function showRebalance({ last_rebalance: last }) {
  const line = byId("rebalance");
  line.hidden = last === null;
  if (last === null || line.dataset.at === last.at) return;
  line.dataset.at = last.at;
  line.replaceChildren("Last rebalance at ", timeElement(Date.parse(last.at)), `: ${last.reason}.`);
}
