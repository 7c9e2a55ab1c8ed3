/** The lag of each partition, who reads it, and the members of the group. */

import { arrange, byId, cell, count, element, plural, say, time } from "./dom.js";

const MIN_SCALE_RECORDS = 10; // a full bar means at least this many records, so that a lag of 1 looks small
let group = null;

/** Keep what was read of the group, with owners and the partitions of other members; `showLag` shows it. */
export const keepGroup = (read) => (group = read);

/** Show the lag, and the group once it was read. */
export function showLag(status) {
  say(byId("lag-total"), count(status.lag));
  say(byId("lag-age"), status.lag_seconds > 0 ? `· oldest record waits ${count(Math.round(status.lag_seconds))} s` : "");
  say(byId("lag-waiting"), status.waiting_for_transaction ? `${count(status.waiting_for_transaction)} behind an open transaction` : "");
  const partitions = merged(status);
  const most = Math.max(MIN_SCALE_RECORDS, ...partitions.map(({ lag }) => lag ?? 0));
  const owners = new Map(group?.members.map((member) => [member.member_id, `${member.client_id} at ${hostOf(member)}`]));
  owners.set(status.member_id, "this instance").set(null, "nobody");
  arrange(byId("lag-rows"), partitions, (one) => String(one.partition), newPartition, (row, one) => {
    row.querySelector("meter").value = (one.lag ?? 0) / most;
    sayCells(row, 2, count(one.lag), count(one.committed), count(one.end), owners.get(one.owner) ?? one.owner);
  });
  if (group !== null) showMembers(group, status.member_id);
  const last = status.last_rebalance;
  say(byId("rebalance"), last ? `Last rebalance at ${time(Date.parse(last.at))}: ${last.reason}.` : "");
}

/** The partitions of the group, updated by the status, which is newer and whose sum is shown above. */
function merged(status) {
  const partitions = new Map(group?.partitions.map((one) => [one.partition, one]));
  for (const one of status.partitions) partitions.set(one.partition, { owner: null, ...partitions.get(one.partition), ...one });
  return [...partitions.values()].sort((one, other) => one.partition - other.partition);
}

function showMembers({ group_id: id, state, members }, ownMember) {
  const idle = members.filter(({ partitions }) => partitions.length === 0).length;
  const waiting = idle > 0 && state === "Stable" ? `, ${idle} of them without a partition` : "";
  say(byId("group"), `Group ${id}: ${state}, ${plural(members.length, "member", "members")}${waiting}.`);
  const newMember = (one) => element("tr", {}, element("th", { scope: "row", title: one.member_id }), cell(""), cell(""));
  arrange(byId("member-rows"), members, (one) => one.member_id, newMember, (row, one) => {
    const own = one.member_id === ownMember ? " (this instance)" : "";
    sayCells(row, 0, `${one.client_id}${own}`, hostOf(one), one.partitions.join(", ") || "none");
  });
}

const sayCells = ({ children }, first, ...texts) => texts.forEach((text, index) => say(children[first + index], text));
const hostOf = ({ host }) => host.replace(/^\//, "");

function newPartition(one) {
  const head = element("th", { scope: "row" }, String(one.partition));
  const meter = cell("meter", element("meter", { "aria-label": "Behind" }));
  return element("tr", {}, head, meter, cell("number"), cell("number wide"), cell("number wide"), cell(""));
}
