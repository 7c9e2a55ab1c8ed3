/** The lag of each partition, who reads it, and the members of the group. */

import { arrange, byId, copyOf, count, plural, say, timeElement } from "./dom.js";

const MIN_SCALE_RECORDS = 10; // a full bar means at least this many records, so that a lag of 1 looks small
let group = null;

export const keepGroup = (read) => (group = read);

export function showLag(status) {
  say(byId("lag-total"), count(status.lag));
  say(byId("lag-age"), status.lag_seconds > 0 ? `· oldest record waits ${count(Math.round(status.lag_seconds))} s` : "");
  say(byId("lag-waiting"), status.waiting_for_transaction ? `${count(status.waiting_for_transaction)} behind an open transaction` : "");
  const partitions = merged(status);
  const most = Math.max(MIN_SCALE_RECORDS, ...partitions.map(({ lag }) => lag ?? 0));
  const owners = new Map(group?.members.map((member) => [member.member_id, `${member.client_id} at ${hostOf(member)}`]));
  owners.set(status.member_id, "this instance").set(null, "nobody");
  arrange(byId("lag-rows"), partitions, (one) => String(one.partition), () => copyOf(byId("partition-row")), (row, one) => {
    const owner = group === null ? "…" : (owners.get(one.owner) ?? one.owner);
    row.querySelector("meter").value = (one.lag ?? 0) / most;
    sayCells(row, String(one.partition), null, count(one.lag), count(one.committed), count(one.end), owner);
  });
  if (group !== null) showMembers(group, status.member_id);
  const last = status.last_rebalance;
  const left = status.member_id === null ? "This instance is not in the group now. " : "";
  say(byId("rebalance"), ...(last ? [`${left}Last rebalance at `, timeElement(last.at), `: ${last.reason}.`] : [left]));
}

/** The partitions of the group, updated by the status, which is newer and whose sum is shown above. */
function merged(status) {
  const partitions = new Map(group?.partitions.map((one) => [one.partition, one]));
  for (const one of status.partitions) partitions.set(one.partition, { owner: null, ...partitions.get(one.partition), ...one });
  return [...partitions.values()].sort((one, other) => one.partition - other.partition);
}

function showMembers({ group_id: id, state, members }, ownMember) {
  say(byId("group"), `Group ${id}: ${state}, ${plural(members.length, "member", "members")}.`);
  arrange(byId("member-rows"), members, (one) => one.member_id, () => copyOf(byId("member-row")), (row, one) => {
    const own = one.member_id === ownMember ? " (this instance)" : "";
    row.firstElementChild.title = one.member_id;
    sayCells(row, `${one.client_id}${own}`, hostOf(one), one.partitions.join(", ") || "none");
  });
}

const sayCells = ({ children }, ...texts) => texts.forEach((text, index) => text === null || say(children[index], text));
const hostOf = ({ host }) => host.replace(/^\//, "");
