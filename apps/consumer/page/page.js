/** The live page: what it reads from the service, how often, and which part shows it. */

import { address, addressOf, onAddress } from "./address.js";
import { failure, get, getHealth } from "./api.js";
import { control, showActions, showNoState, showStatus, whyOff } from "./control.js";
import { DeadLetters } from "./dead_letters.js";
import { byId } from "./dom.js";
import { showHistory, showNow } from "./history.js";
import { GONE, NO_KAFKA, look, poll, wait } from "./looks.js";
import { keepGroup, showLag } from "./partitions.js";
import { Produce } from "./produce.js";
import { Records } from "./records.js";
import { showSession } from "./session.js";
import { names, showDead, showStreams, stream } from "./streams.js";

const HEALTHS = 5; // reads of the state per read of the health of the other streams that are well
const HEALTH_MS = 500; // for which a status may take before health is asked again: with Kafka just lost it takes 3 s
const UNFIT = ["halted", "reconnecting", "retrying", "starting"]; // states in which health says unavailable
const TABS = ["overview", "records", "dead"];
const produce = new Produce();
const records = new Records((value) => produce.open(value));
const deadLetters = new DeadLetters();
let asked = 0; // reads of the state that were started
let shown = 0; // the newest of them that was shown
const healths = {};

const tab = () => (TABS.includes(address().tab) ? address().tab : TABS[0]);
const onOverview = () => tab() === "overview";

/** What is read, and the pause after each answer in milliseconds. */
const STATE = { name: "state", pause: 1_000, read: readState, show: showState, lose: loseState };
const SESSION = { name: "session", pause: 5_000, read: () => get("session", { stream: "" }), show: (session) => showSession(session, () => look(ACTIONS)) };
const GROUP = { name: "group", pause: 1_500, when: onOverview, read: () => get("consumers/group"), show: keepGroup };
const ACTIONS = { name: "operator actions", read: () => get("consumers/actions", { stream: "" }), show: showActions };
const HISTORY = { name: "history", pause: 5_000, when: onOverview, read: () => get("consumers/history"), show: showHistory };
const OTHERS = names.filter((name) => name !== stream).map((name) => ({ name: `dead-letter count of ${name}`, pause: 15_000, read: () => get("consumers/dead-letters/reasons", { stream: name }), show: (reasons) => showDead(name, reasons) }));

/** Read status and health together, so that they are shown together; `fail` when health says first that Kafka is lost. */
async function readState(fail) {
  const number = ++asked;
  const status = get("consumers/status", { stream: "" });
  const wanted = names.filter((name) => name === stream || number % HEALTHS === 1 || [name, stream].some((one) => healths[one]?.status !== "ok"));
  let read, answers;
  while (read === undefined) {
    const { kafka: known } = healths[stream] ?? {};
    [read, ...answers] = await Promise.all([Promise.race([status, wait(HEALTH_MS)]), ...wanted.map(getHealth)]);
    wanted.forEach((name, index) => (healths[name] = answers[index]));
    const { kafka } = healths[stream];
    if (!read && number > shown && kafka !== "connected" && kafka !== known) fail(failure("Kafka is out of reach", 503, healths[stream]));
  }
  for (const name of names) if (name !== stream && UNFIT.includes(read.streams[name]?.state)) healths[name] = { status: "unavailable" };
  return { number, streams: read.streams };
}

function showState({ number, streams }) {
  if (number < shown) return; // it was read before a button was pressed
  shown = number;
  const status = streams[stream];
  showStreams(streams, healths);
  showStatus(status, healths);
  showLag(status);
  showNow(status);
  deadLetters.refresh(status, whyOff({ kafka: "" }, status.state, healths[stream].kafka));
}

function loseState({ problem }) {
  const [reason, health] = problem?.kafka === undefined ? [GONE] : [NO_KAFKA, problem];
  showStreams({}, { [stream]: health });
  showNoState(reason, health);
  showNow(null);
  deadLetters.refresh(null, reason);
}

function visit() {
  for (const name of TABS) byId(name).hidden = name !== tab();
  for (const link of byId("tabs").children) {
    link.setAttribute("href", addressOf(link.dataset.tab === TABS[0] ? "" : link.dataset.tab));
    link.ariaCurrent = link.dataset.tab === tab() ? "page" : null;
  }
  if (document.activeElement.closest(".tab")?.hidden) byId(tab()).querySelector("h2").focus(); // a link led to another tab
  if (tab() === "records") records.visit(address());
  if (tab() === "dead") deadLetters.visit(address());
}

control(() => (look(GROUP), look(ACTIONS), look(STATE))); // only the state is waited for
produce.run();
visit();
onAddress(() => (visit(), [records.newest, GROUP, HISTORY].forEach(look)));
for (const source of [SESSION, HISTORY, STATE, GROUP, records.newest, ...OTHERS]) poll(source.pause, () => look(source));
poll(2_000, () => records.check());
