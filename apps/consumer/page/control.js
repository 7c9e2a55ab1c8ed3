/** The state of the consumer, and the buttons that change it. */

import { addressOf } from "./address.js";
import { post } from "./api.js";
import { arrange, byId, cell, confirmed, count, element, localTime, onSubmit, plural, report, rfc3339, say, timeElement, turn } from "./dom.js";
import { GONE, NO_KAFKA } from "./looks.js";
import { placeOf } from "./record.js";
import { names, showPill, showTitle, stream } from "./streams.js";

const buttons = document.querySelectorAll("button:is([data-while], [data-kafka])"); // what they need
const said = byId("control-said");
const seek = byId("seek");
const SETTLES_MS = 10_000; // within which a state comes of the last command, also a halt of its start
let lag = null;
let done = null; // the last command in words, and when it was done
let actions = []; // of operators, the newest first

/** Wire the buttons and the seek; `refresh` reads and shows the state. */
export function control(refresh) {
  for (const button of document.querySelectorAll("[role=group] > [data-while]")) button.addEventListener("click", () => run(button, refresh));
  seek.elements.to.addEventListener("change", ({ target: { value } }) => {
    for (const name of ["time", "offset"]) seek.elements[name].required = name === value; // the style hides the other
    seek.elements.partition.required = value === "offset";
    seek.elements.time.value ||= localTime(new Date()); // most often only the clock time has to change
  });
  onSubmit(seek, (fields) => report(said, "Counting …", () => goTo(fields)));
  document.addEventListener("click", sayWhyOff, true);
}

/** Say why a disabled button is off when it is pressed, also by Enter in its form, for as long as it is. */
function sayWhyOff(event) {
  const off = event.target.closest("button[aria-disabled=true]");
  if (off === null) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  done = null;
  const [line, reason] = [off.closest("section").querySelector("output:not(form output)"), off.title];
  say(line, reason);
  const unsay = (_, watch) => off.title === reason || (watch.disconnect(), line.textContent === reason && say(line, ""));
  new MutationObserver(unsay).observe(off, { attributeFilter: ["title"] });
}

async function goTo({ to, time: local, partition, offset }) {
  done = null;
  const spot = to === "offset" ? { offset: Number(offset) } : { to: to === "time" ? rfc3339(local) : to };
  const place = { ...spot, ...(partition && { partition: Number(partition) }) };
  const { would_handle_again: again, would_skip: skipped } = await post("consumers/seek", place, { dry_run: true });
  const from = () => (to === "offset" ? `offset ${offset}` : to === "time" ? timeElement(local) : `the ${to}`);
  const most = (number) => (number === 0 ? "no record" : `up to ${plural(number, "record", "records")}`);
  const effect = `: ${most(again)} will be handled again; ${most(skipped)} will be skipped and never handled. `;
  const twice = again > 0 ? "Records that fail again become dead letters again, also those that are dead letters already." : "";
  const where = `${stream}, ${partition ? `partition ${partition}` : "all partitions"}, from `;
  if (!(await confirmed([where, from(), effect, twice], "Seek"))) return "Nothing was moved.";
  const { partitions } = await post("consumers/seek", place);
  const places = Object.entries(partitions).map(([number, next]) => `partition ${number} from offset ${count(next)}`);
  return [`${stream} is consumed from `, from(), `: ${places.join(", ")}.`];
}

async function run(button, refresh) {
  if (button.ariaBusy === "true") return;
  const accept = "accept" in button.dataset;
  const most = lag === null ? "how many records wait is not known" : `up to ${plural(lag, "record waits", "records wait")}`;
  const bad = `Bad records of ${stream} will be dead-lettered until a batch has only good ones: ${most}.`;
  done = null;
  if (accept && !(await confirmed(bad, "Dead-letter the bad ones"))) return report(said, "", () => "Nothing was changed.");
  const name = button.textContent.replace(" …", "");
  button.ariaBusy = "true";
  await report(said, "One moment …", async () => {
    await post(`consumers/${accept ? "start" : button.name}`, accept ? { accept } : undefined);
    done = { name, at: Date.now() };
    await refresh();
    return outcome();
  });
  button.ariaBusy = "false";
  if (document.activeElement === document.body || button.ariaDisabled === "true") said.focus(); // where a second Enter undoes nothing
}

/** The last command, and the state that is shown now, until it changes for another cause. */
function outcome() {
  const { state } = byId("state").dataset;
  done.state = Date.now() - done.at < SETTLES_MS || state === done.state ? state : "unknown";
  return [`${done.name} of ${stream} at `, timeElement(done.at), done.state === "unknown" ? "." : `: it is ${done.state}.`];
}

/** Show status and health of the stream, which were read together, and which other streams are unavailable. */
export function showStatus(status, healths) {
  const health = healths[stream];
  const ill = names.filter((name) => name !== stream && healths[name]?.status === "unavailable");
  lag = status.lag;
  showState(status.state, health, ill, status.last_error ?? "");
  const isPaused = status.state === "reconnecting" && status.paused_partitions.length > 0;
  say(byId("stays-paused"), isPaused && `${stream} stays paused until it is resumed.`);
  for (const button of buttons) turn(button, whyOff(button.dataset, isPaused ? "paused" : status.state, health.kafka));
  say(byId("next-retry"), ...(status.next_retry_at ? ["The next retry is due at ", timeElement(status.next_retry_at), "."] : []));
  say(byId("what"), `reads the topic ${status.topic} as the group ${status.group_id}`);
  showFacts(status);
  showErrors(status, health);
}

/** Who paused or stopped the stream, and when, as far as that is known: health says only that an operator did. */
function whoHeldUp(state) {
  const held = ({ action, outcome: how, parameters: { stream: of = stream } }) => action === { paused: "pause", stopped: "stop" }[state] && how === "done" && of === stream;
  const { who, at } = actions.find(held) ?? {};
  return `by ${who ?? "an operator"}${at ? ` at ${timeElement(at).textContent}` : ""}`;
}

/** Why a button is off: for the state or a missing Kafka; "" when it is on. */
export function whyOff({ while: states, kafka: needed }, state, kafka) {
  if (states && !states.split(" ").includes(state)) return `It is ${state}.`;
  return needed === undefined || kafka === "connected" ? "" : NO_KAFKA;
}

function showFacts(status) {
  const last = status.moves.at(-1);
  const moved = last ? `; partition ${last.partition} moved from ${last.before} to ${last.after}: ${last.reason}` : "";
  const seconds = Math.ceil(status.throttled_seconds);
  say(byId("consumed"), count(status.messages_consumed_count));
  say(byId("dead-lettered"), count(status.dead_lettered_count));
  say(byId("skipped"), count(status.skipped_count) + moved);
  say(byId("throttled"), seconds > 0 && `by a quota of Kafka, for ${count(seconds)} s more`);
  say(byId("member"), status.member_id ?? "none");
  say(byId("started"), timeElement(status.started_at), ", the start of the service");
}

/** Show the last error and link its record; in grey when the error is over. */
function showErrors({ state, last_error: error, last_error_at: at, last_error_lasts: lasts, notes, failing_record: failing, failing_since: since }, health) {
  const isFailing = since !== null && at === since; // else it is Kafka's, while the handler fails too
  const began = at ? [` (${isFailing ? "failing since" : lasts ? "since" : "at"} `, timeElement(at), ")"] : [];
  const last = error ? ["Last error", ...began, `: ${error}`, notes.length > 0 && "; "] : [];
  showLine("last-error", ...last, notes.join("; "));
  byId("last-error").className = lasts ? "trouble" : "muted";
  const placeIn = (text) => /-(?<partition>\d+) offset (?<offset>\d+)/.exec(text ?? "")?.groups;
  const named = (isFailing && failing) || placeIn(error);
  const refused = state === "halted" && placeIn(health.detail); // also while the last error is Kafka's
  showLine("failing", named && `Show the record: partition ${named.partition}, offset ${named.offset}`);
  byId("refused").hidden = !refused;
  for (const [id, place] of Object.entries({ failing: named, refused })) if (place) byId(id).setAttribute("href", addressOf("records", { open: placeOf(place) }));
}

/** Show a line; the style shows where it is cut off, and hides an empty one. */
function showLine(id, ...contents) {
  const line = byId(id);
  say(line, ...contents);
  line.toggleAttribute("data-cut", line.scrollHeight > line.clientHeight);
}

export function showActions(read) {
  actions = read.actions;
  say(byId("no-actions"), "None on this instance since its start.");
  arrange(byId("action-rows"), actions, ({ at, request_id: id }) => `${at} ${id}`, actionRow);
}

function actionRow({ at, who, action, parameters: { dry_run: dry, ...given }, outcome }) {
  const shown = (value) => (/^\d{4}-.*T/.test(value) ? timeElement(value) : String(value).replace(/^sha256:.*/, "(kept as a hash)").slice(0, 25));
  const words = Object.entries(given).flatMap(([name, value], index) => [index > 0 && ", ", `${name} `, shown(value)]);
  const [what, result] = dry === "true" ? [`${action}: dry run`, outcome.replace("done", "only counted")] : [action, outcome];
  const contents = [[timeElement(at)], [who ?? "not known"], [what], words, [result]];
  return element("tr", { "data-outcome": outcome }, ...contents.map((one) => cell("", ...one)));
}

/** Show that the state is not known: the service is gone, or its health came first and says that Kafka is. */
export function showNoState(reason, health = { status: "unknown", detail: "" }) {
  showState("unknown", health); // the banner says why
  for (const button of buttons) if (reason === GONE || "kafka" in button.dataset) turn(button, reason);
}

function showState(state, { status, detail, kafka }, ill = [], error = "") {
  showPill(byId("state"), state, status);
  document.body.dataset.kafka = kafka; // the style says why buttons that need it are off
  const [, kind = "", cause] = /^([a-z]+: )?(.*?)(?: \(see last_error of the status\))?$/s.exec(detail);
  const isBelow = error.includes(cause) || (kafka !== "connected" && [cause, error].every((one) => one.startsWith("Kafka "))); // in the line of the last error
  const why = isBelow ? kind.slice(0, -2) : kind + cause.replace("by an operator", whoHeldUp(state));
  showLine("health", `Health${names.length > 1 ? ` of ${stream}` : ""} ${status}${why && `: ${why}`}`);
  byId("health").className = status === "ok" ? "muted" : "trouble";
  say(byId("others"), ill.length > 0 && `${status === "ok" ? "The service is unavailable because of" : "Also unavailable:"} ${ill.join(", ")}.`);
  if (done) say(said, ...outcome());
  showTitle(status === "unavailable" ? `${state}, unavailable` : state);
}
