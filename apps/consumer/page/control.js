/** The state of the consumer, and the buttons that change it. */

import { addressOf } from "./address.js";
import { post } from "./api.js";
import { facts } from "./content.js";
import { arrange, byId, cell, confirmed, count, element, localTime, onSubmit, plural, report, rfc3339, say, time, timeElement, turn } from "./dom.js";
import { GONE } from "./looks.js";
import { placeOf } from "./record.js";
import { names, showPill, stream, title } from "./streams.js";

const LIVELY = ["starting", "running", "retrying", "reconnecting"];

/** Each command: its call, when it makes sense, and which button to press next. */
const COMMANDS = {
  start: { name: "Start", path: "consumers/start", while: ["stopped", "halted"], next: "stop" },
  stop: { name: "Stop", path: "consumers/stop", while: [...LIVELY, "paused"], next: "start" },
  pause: { name: "Pause", path: "consumers/pause", while: LIVELY, next: "resume" },
  resume: { name: "Resume", path: "consumers/resume", while: ["paused"], next: "pause" },
  accept: { name: "Start (bad records go to Dead letters)", path: "consumers/start", body: { accept: true }, while: ["halted", "retrying"], next: "stop" },
};

/** What to do in each bad state. */
const ADVICE = {
  retrying: "The handler fails, and its records are retried. Consuming goes on by itself once another record succeeds or the handler works again; if the fault is in the records, dead-letter them now.",
  halted: "Too many records were refused, and Records shows them with their errors: usually a wrong deploy, or a producer with another schema. Deploy a fix and start, or start and dead-letter the bad records.",
  reconnecting: "Kafka is out of reach or refuses this service. The service connects again by itself.",
};

const said = byId("control-said");
const seek = byId("seek");
let lag = null;

/** Wire the buttons and the seek; `refresh` reads and shows the state. */
export function control(refresh) {
  for (const [name, command] of Object.entries(COMMANDS)) byId(name).addEventListener("click", () => run(name, command, refresh));
  seek.elements.to.addEventListener("change", ({ target: { value } }) => {
    for (const name of ["time", "offset"]) {
      seek.elements[name].required = name === value;
      seek.elements[name].parentElement.hidden = name !== value;
    }
    seek.elements.partition.required = value === "offset";
    seek.elements.time.value ||= localTime(new Date()); // most often only the clock time has to change
  });
  onSubmit(seek, (fields) => report(said, "Counting …", () => goTo(fields)));
  document.addEventListener("click", sayWhyOff, true);
}

/** Say why a disabled button is off when it is pressed, also by Enter in its form. */
function sayWhyOff(event) {
  const off = event.target.closest("button[aria-disabled=true]");
  if (off === null) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  say(off.closest("section").querySelector("output:not(form output)"), off.title);
}

async function goTo({ to, time: local, partition, offset }) {
  const spot = to === "offset" ? { offset: Number(offset) } : { to: to === "time" ? rfc3339(local) : to };
  const place = { ...spot, ...(partition && { partition: Number(partition) }) };
  const { would_handle_again: again, would_skip: skipped } = await post("consumers/seek", place, { dry_run: true });
  const from = to === "offset" ? `offset ${offset}` : to === "time" ? time(Date.parse(local)) : `the ${to}`;
  const effect = `${plural(again, "record", "records")} will be handled again; ${count(skipped)} will be skipped and never handled`;
  const where = `${stream}, ${partition ? `partition ${partition}` : "all partitions"}, from ${from}`;
  if (!(await confirmed(`${where}: ${effect}.`, "Seek"))) return "Nothing was moved.";
  const { partitions } = await post("consumers/seek", place);
  return `Consumes from there in ${plural(Object.keys(partitions).length, "partition", "partitions")}.`;
}

async function run(name, command, refresh) {
  const button = byId(name);
  if (button.ariaBusy === "true") return;
  const bad = `Bad records of ${stream} will be dead-lettered until a batch has only good ones: up to ${plural(lag ?? 0, "record waits", "records wait")}.`;
  if (name === "accept" && !(await confirmed(bad, "Dead-letter the bad ones"))) return;
  button.ariaBusy = "true";
  let answered = byId("state").dataset.state;
  await report(said, "One moment …", async () => {
    ({ state: answered } = await post(command.path, command.body));
    await refresh();
    return `${command.name} at ${time(Date.now())}: the consumer is ${answered}.`;
  });
  said.dataset.state = answered;
  clearOutdated();
  button.ariaBusy = "false";
  const lost = document.activeElement === document.body || button.ariaDisabled === "true" || button.hidden;
  if (lost) byId(command.next).focus(); // otherwise the keyboard focus returns to the top of the page
}

/** Clear the answer of a button once the state has changed, so that they never contradict each other. */
function clearOutdated() {
  const { state } = said.dataset;
  if (state === undefined || state === byId("state").dataset.state) return;
  delete said.dataset.state;
  report(said, "", () => "");
}

/** Show status and health of the stream, which were read together, and which other streams are unavailable. */
export function showStatus(status, healths) {
  const health = healths[stream];
  const ill = names.filter((name) => name !== stream && healths[name]?.status === "unavailable");
  lag = status.lag;
  showState(status.state, health, ill.length > 0 ? `; the service is unavailable${health.status === "ok" ? "" : " also"} because of ${ill.join(", ")}` : "");
  const why = (states) => (states.includes(status.state) ? "" : `It is ${status.state}.`);
  for (const [name, command] of Object.entries(COMMANDS)) turn(byId(name), why(command.while));
  turn(seek.querySelector("button"), why(COMMANDS.stop.while));
  say(byId("accept"), status.state === "retrying" ? "Dead-letter the failing records …" : "Start, accepting bad records …");
  byId("accept").hidden = why(COMMANDS.accept.while) !== "";
  say(byId("what"), `reads ${status.topic} as ${status.group_id}`);
  showLine("advice", ADVICE[status.state]);
  showFacts(status);
  showErrors(status, health);
}

function showFacts(status) {
  const last = status.moves.at(-1);
  const moved = last ? `; partition ${last.partition} moved from ${last.before} to ${last.after}: ${last.reason}` : "";
  const list = facts([
    ["consumed", count(status.messages_consumed_count)],
    ["dead-lettered", count(status.dead_lettered_count)],
    ["skipped", count(status.skipped_count) + moved],
    ...(status.throttled_seconds > 0 ? [["throttled", `by a quota of Kafka, for ${count(Math.ceil(status.throttled_seconds))} s more`]] : []),
    ["member", status.member_id ?? "none"],
    ["service started", time(Date.parse(status.started_at))],
  ]);
  if (byId("facts").textContent !== list.textContent) byId("facts").replaceChildren(...list.children);
}

/** Show the last error and link its record; in grey while the service is healthy, because the error is over. */
function showErrors({ last_error: error, notes, failing_record: failing, failing_since: since }, health) {
  const began = since ? ` (failing since ${time(Date.parse(since))})` : "";
  showLine("last-error", [error && `Last error${began}: ${error}`, ...notes].filter(Boolean).join("; "));
  byId("last-error").className = health.status === "ok" ? "muted" : "trouble";
  const named = failing ?? /-(?<partition>\d+) offset (?<offset>\d+)/.exec(error ?? "")?.groups;
  showLine("failing", named ? `Show the record: partition ${named.partition}, offset ${named.offset}` : "");
  if (named) byId("failing").setAttribute("href", addressOf("records", { open: placeOf(named) }));
}

/** Show a line, cut off with its full text as title; hide it when it is empty. */
function showLine(id, text = "") {
  byId(id).hidden = text === "";
  byId(id).title = text;
  say(byId(id), text);
}

/** Show the last operator actions on this instance. */
export function showActions({ actions }) {
  byId("no-actions").hidden = actions.length > 0;
  arrange(byId("action-rows"), actions, ({ at, request_id: id }) => `${at} ${id}`, (one) => {
    const given = Object.entries(one.parameters).map(([name, value]) => `${name}=${String(value).slice(0, 25)}`);
    const texts = [one.who ?? "–", one.action, given.join(" "), one.outcome];
    return element("tr", {}, cell("time", timeElement(Date.parse(one.at))), ...texts.map((text) => cell("", text)));
  });
}

/** Show that the state cannot be read, and why. */
export function showNoState({ status, message }) {
  showState(status === 0 ? "no answer" : "unknown", { status: "unknown", detail: message });
  for (const button of [...Object.keys(COMMANDS).map(byId), seek.querySelector("button")]) turn(button, GONE);
  showLine("advice");
}

/** Show state and health as words in their colours. */
function showState(state, { status, detail }, others = "") {
  showPill(byId("state"), state, status);
  showLine("health", `Health${names.length > 1 ? ` of ${stream}` : ""} ${status}: ${detail.replace(" (see last_error of the status)", "")}${others}`);
  byId("health").className = status === "ok" && others === "" ? "muted" : "trouble";
  document.title = `${status === "unavailable" ? `${state}, unavailable` : state} · ${title}`;
  clearOutdated();
}
