/** The live page: what is asked of the service, how often, and which part of the page shows it. */

import { get } from "./api.js";
import { control, showState, showStatus } from "./control.js";
import { DeadLetters } from "./dead_letters.js";
import { byId } from "./dom.js";
import { showGroup } from "./lag.js";
import { Notices } from "./notices.js";
import { people } from "./people.js";
import { poll } from "./poll.js";
import { RateLine } from "./rate.js";
import { Records } from "./records.js";

const PAUSE = 1_000; // ms between two answers of a kind
const GROUP_PAUSE = 1_500; // this one asks Kafka's coordinator each time

const notices = new Notices(byId("notices"));
const rate = new RateLine(byId("rate-line"), byId("rate-now"), byId("rate-most"));
const records = new Records();
const deadLetters = new DeadLetters(notices);
let member = null;

async function readStatus() {
  try {
    return await get("consumers/status");
  } catch (failure) {
    if (failure.status === 0) showState("no answer");
    rate.interrupt();
    throw failure;
  }
}

function show(status) {
  member = status.member_id;
  showStatus(status);
  rate.add(status);
  deadLetters.refresh(status);
}

async function readRecords() {
  if (records.following) return records.read();
  notices.forget("newest records");
  return null;
}

control();
people();
poll(notices, "state", PAUSE, readStatus, show);
poll(notices, "lag", GROUP_PAUSE, () => get("consumers/group"), (group) => showGroup(group, member));
poll(notices, "newest records", PAUSE, readRecords, (answer) => answer && records.showNewest(answer));
