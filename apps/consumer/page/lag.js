/** The lag of each partition, and who reads it: this copy or another member of the group. */

import { arrange, byId, count, drawn, element, plural, say } from "./dom.js";

const SHORTEST = 10; // records that a full bar means at least: a lag of 1 is no alarm

/** Show the group; `ownMember` is the member id of this copy, or null. */
export function showGroup(group, ownMember) {
  const members = new Map(group.members.map((member) => [member.member_id, member]));
  const most = Math.max(SHORTEST, ...group.partitions.map((partition) => partition.lag ?? 0));
  say(byId("lag-total"), count(group.lag));
  arrange(byId("lag-rows"), group.partitions, (one) => String(one.partition), newRow, (row, one) =>
    updateRow(row, one, most, owner(one.owner, members, ownMember)),
  );
  const idle = group.members.filter((member) => member.partitions.length === 0).length;
  const waiting = idle > 0 && group.state === "Stable" ? `, ${idle} of them without a partition` : "";
  say(byId("group"), `Group ${group.group_id}: ${group.state}, ${plural(group.members.length, "member", "members")}${waiting}.`);
}

function owner(memberId, members, ownMember) {
  if (memberId === null) return { name: "nobody", title: "" };
  if (memberId === ownMember) return { name: "this copy", title: memberId };
  const member = members.get(memberId);
  return { name: member ? `${member.client_id} at ${member.host.replace(/^\//, "")}` : memberId, title: memberId };
}

function newRow(one) {
  const bar = drawn("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" });
  bar.append(drawn("rect", { width: "0", height: "8" }));
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, String(one.partition)),
    element("td", { class: "bar" }, bar),
    element("td", { class: "number" }),
    element("td", { class: "number wide" }),
    element("td", { class: "number wide" }),
    element("td"),
  );
}

function updateRow(row, one, most, { name, title }) {
  const [, bar, lag, committed, end, who] = row.children;
  bar.querySelector("rect").setAttribute("width", String(((one.lag ?? 0) / most) * 100));
  say(lag, count(one.lag));
  say(committed, count(one.committed));
  say(end, count(one.end));
  say(who, name);
  who.title = title;
}
