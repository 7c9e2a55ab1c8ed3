/** The live page: what is asked of the service, how often, and which part of the page shows it. */

import { address, addressOf, onAddress } from "./address.js";
import { get, getHealth } from "./api.js";
import { control, showNoState, showRebalance, showStatus } from "./control.js";
import { DeadLetters } from "./dead_letters.js";
import { byId } from "./dom.js";
import { History, showRate } from "./history.js";
import { Notices } from "./notices.js";
import { showLag } from "./partitions.js";
import { look, poll } from "./poll.js";
import { Produce } from "./produce.js";
import { Records } from "./records.js";
import { names, refuseUnknownStream, showStreams, stream } from "./streams.js";

const PAUSE = 1_000; // ms between two answers of a kind
const GROUP_PAUSE = 1_500; // this one asks Kafka's coordinator each time
const RECORDS_PAUSE = 2_000; // this one reads the end of each partition
const HISTORY_PAUSE = 5_000; // a new point follows every 10 s
const OTHERS = 5; // looks at the state for one at the health of the other streams
const TABS = ["overview", "records", "dead"];

const notices = new Notices(byId("notices"));
const history = new History();
const produce = new Produce();
const records = new Records((value) => produce.open(value));
const deadLetters = new DeadLetters(notices);
let asked = 0; // looks at the state so far
let shown = 0; // the newest of them that is shown
let status = null;
let group = null;
let healths = {};

const tab = () => (TABS.includes(address().tab) ? address().tab : TABS[0]);

/** Read status and health together: neither is shown without the other. */
async function readState() {
  asked += 1;
  const number = asked;
  const others = number % OTHERS === 1 ? names.filter((name) => name !== stream) : [];
  const [{ streams }, health, ...more] = await Promise.all([get("consumers/status", { stream: "" }), getHealth(), ...others.map((name) => getHealth(name))]);
  healths = { ...healths, ...Object.fromEntries(others.map((name, index) => [name, more[index]])), [stream]: health };
  return { number, status: streams[stream], states: states(streams), health };
}

const states = (streams) => Object.fromEntries(Object.entries(streams).map(([name, { state }]) => [name, state]));

function showState(answer) {
  if (answer.number < shown) return; // it was asked before a button was pressed
  shown = answer.number;
  status = answer.status;
  showStreams(answer.states, healths);
  showStatus(status, answer.health);
  showLag(status, group);
  showRebalance(status);
  showRate(status);
  deadLetters.refresh(status);
}

function loseState(failure) {
  showStreams({}, {});
  showNoState(failure);
  showRate(null);
}

function showGroup(answer) {
  group = answer;
  if (status !== null) showLag(status, group);
}

/** Read what a tab shows, while it is shown. */
async function whileOn(name, source, read) {
  if (name()) return read();
  notices.succeeded(source);
  return null;
}

function visit() {
  const current = tab();
  for (const name of TABS) byId(name).hidden = name !== current;
  for (const link of byId("tabs").children) {
    const own = link.dataset.tab === TABS[0] ? "" : link.dataset.tab;
    link.setAttribute("href", addressOf(own));
    if (link.dataset.tab === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (current === "records") records.visit(address());
  if (current === "dead") deadLetters.visit(address());
}

const onOverview = () => tab() === "overview";
const lookAtState = () => look(notices, "state", readState, showState, loseState);
const readGroup = () => whileOn(onOverview, "group", () => get("consumers/group"));
const lookAtGroup = () => look(notices, "group", readGroup, (answer) => answer && showGroup(answer));
const readHistory = () => whileOn(onOverview, "history", () => get("consumers/history"));
const readRecords = () => whileOn(() => records.following, "newest records", () => records.read());
const lookAtRecords = () => look(notices, "newest records", readRecords, (answer) => answer && records.showNewest(answer));

refuseUnknownStream();
control(() => {
  lookAtGroup(); // which may take longer, and nobody waits for it
  return lookAtState();
});
produce.run();
visit();
onAddress(() => {
  visit();
  if (records.following) lookAtRecords();
  if (onOverview()) lookAtGroup();
});
poll(PAUSE, lookAtState);
poll(GROUP_PAUSE, lookAtGroup);
poll(HISTORY_PAUSE, () => look(notices, "history", readHistory, (answer) => answer && history.show(answer)));
poll(RECORDS_PAUSE, lookAtRecords);
