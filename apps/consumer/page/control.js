/** The state of the consumer, and the buttons that change it. */

import { keepApiKey, post, refusals } from "./api.js";
import { byId, count, element, onSubmit, plural, report, rfc3339, say, time } from "./dom.js";

/** Each command: when it makes sense, what it leads to, and which button is the next one for whoever has used it. */
const COMMANDS = {
  start: { path: "consumers/start", done: "Started", leadsTo: "running", while: ["stopped", "halted"], next: "stop" },
  stop: { path: "consumers/stop", done: "Stopped", leadsTo: "stopped", while: ["starting", "running", "retrying", "paused", "reconnecting"], next: "start" },
  pause: { path: "consumers/pause", done: "Paused", leadsTo: "paused", while: ["starting", "running", "retrying", "reconnecting"], next: "resume" },
  resume: { path: "consumers/resume", done: "Resumed", leadsTo: "running", while: ["paused"], next: "pause" },
  accept: { path: "consumers/start", body: { accept: true }, done: "Started", leadsTo: "running", while: ["halted", "retrying"], next: "stop" },
};

/** Wire the buttons, the seek and the field for the API key. */
export function control() {
  const said = byId("control-said");
  for (const [name, command] of Object.entries(COMMANDS)) {
    byId(name).addEventListener("click", () => order(name, command, said));
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

async function order(name, command, said) {
  const button = byId(name);
  if (button.ariaBusy === "true") return;
  button.ariaBusy = "true";
  await report(said, "One moment …", async () => {
    const status = await post(command.path, command.body);
    showStatus(status);
    const so = status.state === command.leadsTo ? "" : `; it is ${status.state} now`;
    return `${command.done} at ${time(Date.now())}${so}.`;
  });
  button.ariaBusy = "false";
  const lost = document.activeElement === document.body || button.disabled || button.hidden;
  if (lost) byId(command.next).focus(); // or the keyboard is at the top of the page again
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

/** Show what the service says of itself. */
export function showStatus(status) {
  showState(status.state);
  for (const [name, command] of Object.entries(COMMANDS)) byId(name).disabled = !command.while.includes(status.state);
  byId("accept").hidden = !COMMANDS.accept.while.includes(status.state);
  say(byId("what"), `reads ${status.topic} as ${status.group_id}`);
  const facts = {
    consumed: count(status.messages_consumed_count),
    "dead-lettered": count(status.dead_lettered_count),
    "lag of this copy": `${count(status.lag)} records, ${count(status.lag_seconds)} s`,
    "waiting for a transaction": count(status.waiting_for_transaction),
    skipped: skipped(status),
    since: time(Date.parse(status.started_at)),
  };
  const list = byId("facts");
  if (list.childElementCount === 0) {
    for (const name of Object.keys(facts)) list.append(element("div", {}, element("dt", {}, name), element("dd")));
  }
  Object.values(facts).forEach((text, index) => say(list.children[index].lastElementChild, text));
  showErrors(status);
}

/** The records that were never consumed, and where the position moved last without consuming or a seek. */
function skipped({ skipped_count: number, moves }) {
  const last = moves.at(-1);
  return count(number) + (last ? `; partition ${last.partition} moved from ${last.before} to ${last.after}: ${last.reason}` : "");
}

/** An error that is over is told calmly: the last bad record, say, while all the others are consumed. */
function showErrors({ last_error: error, failures, notes, state }) {
  const line = byId("last-error");
  const calm = failures === 0 && ["running", "paused", "stopped"].includes(state);
  line.className = calm ? "muted" : "trouble";
  line.hidden = error === null && notes.length === 0;
  say(line, [error && `Last error: ${error}`, ...notes].filter(Boolean).join("; "));
}

/** Show a state in word and colour. */
export function showState(state) {
  const pill = byId("state");
  pill.dataset.state = state;
  say(pill, state);
  document.title = `${state} · Consumer of people`;
}
