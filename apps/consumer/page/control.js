/** The state of the consumer, and the buttons that change it. */

import { keepApiKey, post, refusals } from "./api.js";
import { arrange, byId, count, element, onSubmit, plural, report, rfc3339, say, time } from "./dom.js";
import { title } from "./streams.js";

/** Each command: when it makes sense, what it leads to, and which button is the next one for whoever has used it. */
const COMMANDS = {
  start: { path: "consumers/start", name: "Start", while: ["stopped", "halted"], next: "stop" },
  stop: { path: "consumers/stop", name: "Stop", while: ["starting", "running", "retrying", "paused", "reconnecting"], next: "start" },
  pause: { path: "consumers/pause", name: "Pause", while: ["starting", "running", "retrying", "reconnecting"], next: "resume" },
  resume: { path: "consumers/resume", name: "Resume", while: ["paused"], next: "pause" },
  accept: { path: "consumers/start", body: { accept: true }, name: "Start", while: ["halted", "retrying"], next: "stop" },
};

/** Wire the buttons, the seek and the field for the API key; `refresh` reads and shows the state. */
export function control(refresh) {
  const said = byId("control-said");
  for (const [name, command] of Object.entries(COMMANDS)) {
    byId(name).addEventListener("click", () => run(name, command, said, refresh));
  }
  const seek = byId("seek");
  seek.elements.to.addEventListener("change", () => {
    for (const label of seek.querySelectorAll("[data-for]")) label.hidden = label.dataset.for !== seek.elements.to.value;
  });
  onSubmit(seek, (fields) =>
    report(said, "Going there …", async () => {
      const { partitions } = await post("consumers/seek", place(fields));
      return `Reads on from there in ${plural(Object.keys(partitions).length, "partition", "partitions")}.`;
    }),
  );
  askForKey(said);
}

async function run(name, command, said, refresh) {
  const button = byId(name);
  if (button.ariaBusy === "true") return;
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
  const lost = document.activeElement === document.body || button.disabled || button.hidden;
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
  showState(status.state, health);
  for (const [name, command] of Object.entries(COMMANDS)) byId(name).disabled = !command.while.includes(status.state);
  byId("accept").hidden = !COMMANDS.accept.while.includes(status.state);
  say(byId("what"), `reads ${status.topic} as ${status.group_id}`);
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

/** The records that were never consumed, and where the position moved last without consuming or a seek. */
function skipped({ skipped_count: number, moves }) {
  const last = moves.at(-1);
  return count(number) + (last ? `; partition ${last.partition} moved from ${last.before} to ${last.after}: ${last.reason}` : "");
}

/** Show the last error; in grey while the service is healthy, since it is over then. */
function showErrors({ last_error: error, notes }, health) {
  const line = byId("last-error");
  line.className = health.status === "ok" ? "muted" : "trouble";
  line.hidden = error === null && notes.length === 0;
  say(line, [error && `Last error: ${error}`, ...notes].filter(Boolean).join("; "));
}

/** Show that the state cannot be read, and why. */
export function showNoState({ status, message }) {
  showState(status === 0 ? "no answer" : "unknown", { status: "unknown", detail: message });
}

/** Show a state and the health in word and colour. */
function showState(state, { status, detail }) {
  const pill = byId("state");
  pill.dataset.state = state;
  pill.dataset.health = status;
  say(pill, state);
  const line = byId("health");
  line.className = status === "ok" ? "muted" : "trouble";
  say(line, `Health ${status}: ${detail}`);
  document.title = `${status === "unavailable" ? `${state}, unavailable` : state} · ${title}`;
  clearOutdated(byId("control-said"));
}
