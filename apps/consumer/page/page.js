/** The live page: what is asked of the service, how often, and which part of the page shows it. */

import { get, getHealth } from "./api.js";
import { control, showNoState, showStatus } from "./control.js";
import { creation } from "./creation.js";
import { DeadLetters } from "./dead_letters.js";
import { byId } from "./dom.js";
import { showLag } from "./lag.js";
import { Notices } from "./notices.js";
import { look, poll } from "./poll.js";
import { RateLine } from "./rate.js";
import { Records } from "./records.js";
import { refuseUnknownStream, showStreams, stream } from "./streams.js";

const PAUSE = 1_000; // ms between two answers of a kind
const GROUP_PAUSE = 1_500; // this one asks Kafka's coordinator each time

const notices = new Notices(byId("notices"));
const rate = new RateLine(byId("rate-line"), byId("rate-now"), byId("rate-most"));
const records = new Records();
const deadLetters = new DeadLetters(notices);
let asked = 0; // looks at the state so far
let shown = 0; // the newest of them that is shown
let status = null;
let group = null;

/** Read status and health together: neither is shown without the other. */
async function readState() {
  asked += 1;
  const number = asked;
  const [{ streams }, health] = await Promise.all([get("consumers/status", { stream: "" }), getHealth()]);
  return { number, status: streams[stream], states: states(streams), health };
}

const states = (streams) => Object.fromEntries(Object.entries(streams).map(([name, { state }]) => [name, state]));

function showState(answer) {
  if (answer.number < shown) return; // it was asked before a button was pressed
  shown = answer.number;
  status = answer.status;
  showStreams(answer.states);
  showStatus(status, answer.health);
  showLag(status, group);
  rate.add(status);
  deadLetters.refresh(status);
}

function loseState(failure) {
  showStreams({});
  showNoState(failure);
  rate.interrupt();
}

function showGroup(answer) {
  group = answer;
  if (status !== null) showLag(status, group);
}

async function readRecords() {
  if (records.following) return records.read();
  notices.forget("newest records");
  return null;
}

const lookAtState = () => look(notices, "state", readState, showState, loseState);
const lookAtGroup = () => look(notices, "group", () => get("consumers/group"), showGroup);

refuseUnknownStream();
control(() => {
  lookAtGroup(); // which may take longer, and nobody waits for it
  return lookAtState();
});
creation();
poll(PAUSE, lookAtState);
poll(GROUP_PAUSE, lookAtGroup);
poll(PAUSE, () => look(notices, "newest records", readRecords, (answer) => answer && records.showNewest(answer)));
