/** The lag of each partition, who reads it, and the members of the group. */

import { arrange, byId, cell, count, element, plural, say } from "./dom.js";

const SHORTEST = 10; // records that a full bar means at least: a lag of 1 is no alarm

/** Show the lag; `group` adds what the status does not know: the owners, and the partitions of others (null: not read yet). */
export function showLag(status, group) {
  say(byId("lag-total"), count(status.lag));
  const age = status.lag_seconds > 0 ? `, the oldest waits ${count(Math.round(status.lag_seconds))} s` : "";
  say(byId("lag-age"), status.lag === null ? "not known" : `${status.lag === 1 ? "record" : "records"}${age}`);
  const waiting = byId("lag-waiting");
  waiting.hidden = !status.waiting_for_transaction;
  say(waiting, `${count(status.waiting_for_transaction)} behind an open transaction`);
  const partitions = merged(status, group);
  const members = new Map(group?.members.map((member) => [member.member_id, member]));
  const most = Math.max(SHORTEST, ...partitions.map((partition) => partition.lag ?? 0));
  arrange(byId("lag-rows"), partitions, (one) => String(one.partition), newRow, (row, one) =>
    updateRow(row, one, most, owner(one.owner, members, status.member_id)),
  );
  if (group !== null) showMembers(group, status.member_id);
}

/** The partitions of the group; what the status says of some of them is newer, and stands above as their sum. */
function merged(status, group) {
  const partitions = new Map(group?.partitions.map((one) => [one.partition, one]));
  for (const one of status.partitions) partitions.set(one.partition, { owner: null, ...partitions.get(one.partition), ...one });
  return [...partitions.values()].sort((one, other) => one.partition - other.partition);
}

function showMembers(group, ownMember) {
  const idle = group.members.filter((member) => member.partitions.length === 0).length;
  const waiting = idle > 0 && group.state === "Stable" ? `, ${idle} of them without a partition` : "";
  say(byId("group"), `Group ${group.group_id}: ${group.state}, ${plural(group.members.length, "member", "members")}${waiting}.`);
  const make = ({ member_id: id }) => element("tr", {}, element("th", { scope: "row", title: id }), cell(""), cell(""));
  arrange(byId("member-rows"), group.members, ({ member_id: id }) => id, make, ({ children: [name, host, partitions] }, member) => {
    say(name, member.member_id === ownMember ? `${member.client_id} (this instance)` : member.client_id);
    say(host, hostOf(member));
    say(partitions, member.partitions.join(", ") || "none");
  });
}

const hostOf = ({ host }) => host.replace(/^\//, "");

function owner(memberId, members, ownMember) {
  if (memberId === null) return { name: "nobody", title: "" };
  if (memberId === ownMember) return { name: "this instance", title: memberId };
  const member = members.get(memberId);
  return { name: member ? `${member.client_id} at ${hostOf(member)}` : memberId, title: memberId };
}

function newRow(one) {
  const meter = element("meter", { "aria-label": "Behind" });
  return element("tr", {}, element("th", { scope: "row" }, String(one.partition)), cell("meter", meter), cell("number"), cell("number wide"), cell("number wide"), cell(""));
}

function updateRow(row, one, most, { name, title }) {
  const [, meter, lag, committed, end, who] = row.children;
  meter.firstElementChild.value = (one.lag ?? 0) / most;
  say(lag, count(one.lag));
  say(committed, count(one.committed));
  say(end, count(one.end));
  say(who, name);
  who.title = title;
}
