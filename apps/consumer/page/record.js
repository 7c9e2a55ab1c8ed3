/** The panel next to a list: one record or dead letter in full, with its actions. */

import { addressOf, addressWith, go } from "./address.js";
import { curlOf, get } from "./api.js";
import { contentBlock, contentText, facts, keyContent, MASK, maskedSign, nameOf, reasonOf, valueText } from "./content.js";
import { button, count, element, inside, rfc3339, say, timeElement } from "./dom.js";

/** The place of a record or dead letter, as the address names it. */
export const placeOf = ({ partition, offset }) => `${partition}-${offset}`;

/** Fill and show a panel. When it was opened by keyboard, its "Close" link gets the focus. */
export function fill(panel, heading, ...children) {
  const byKeyboard = document.activeElement.matches("a[data-open]:focus-visible") || panel.contains(document.activeElement);
  const closing = inside(addressWith({ open: "" }), "Close");
  panel.replaceChildren(element("div", {}, element("div", { class: "bar" }, element("h3", {}, heading), closing), ...children));
  panel.hidden = false;
  if (byKeyboard) closing.focus();
}

/** Hide a panel; move keyboard focus inside it back to its row in the list. */
export function close(panel, list) {
  const row = panel.contains(document.activeElement) && list.querySelector(`[data-open="${panel.dataset.open}"]`);
  panel.hidden = true;
  panel.dataset.open = ""; // what is being read for it is not shown any more
  panel.replaceChildren(); // it would keep what the topic may lose
  if (row) row.focus();
}

/** Read a record from the topic and show it in a panel; `sendAgain` opens the form with its value. */
export async function showRecord(panel, open, sendAgain) {
  const [partition, offset] = open.split("-");
  const path = `consumers/messages/${encodeURIComponent(partition)}/${encodeURIComponent(offset)}`;
  const show = (...children) => panel.dataset.open === open && fill(panel, `Partition ${partition}, offset ${offset}`, ...children);
  panel.dataset.open = open;
  show(element("p", { class: "muted" }, "Reading it from the topic …"));
  try {
    const [record, status] = await Promise.all([get(path), get("consumers/status").catch(() => ({}))]);
    const { failing_record: failing, last_error: last } = status;
    const [, ofLast] = last?.split(`-${partition} offset ${offset}: `) ?? []; // it may be a dead letter by now
    const error = failing && placeOf(failing) === open ? failing.error : (record.error ?? ofLast);
    const text = valueText(record);
    const size = `${count(new TextEncoder().encode(text).length)} bytes${record.value ? " as compact JSON" : ""}`;
    const again = record.value && !record.masked && button("Send again …", () => sendAgain(record.value), { "data-role": "send" });
    show(
      error && element("p", { class: "trouble" }, error),
      letterOf(record, error),
      actions(record, text, curlOf(path), again, error && linkToLike(error), sentBackSign(record)),
      facts([["topic", record.topic], ["time", timeElement(record.timestamp)], ["key", keyContent(record)], ["size", size]]),
      ...contents(record.value || record.deleted ? { text } : record.content, record.headers, record.error),
    );
  } catch (failure) {
    const next = failure.problem?.next;
    const further = next != null && inside(addressWith({ open: `${partition}-${next}` }), `Show the next one, offset ${count(next)}`);
    show(element("p", { class: "trouble" }, `It cannot be shown: ${failure.message}`), further);
  }
}

/** Link the dead letter of a record; say why it is one unless its `error` is known. Empty without a dead letter. */
function letterOf(record, error) {
  const [place, key] = [element("p"), keyText(record)];
  const isOfIt = ({ origin }) => origin.topic === record.topic && placeOf(origin) === placeOf(record);
  const why = (letter) => (error ? [] : [element("span", { class: "trouble" }, ...reasonOf(letter)), " · ", likeOf(letter), " · "]);
  const show = (letter) => letter && place.append(...why(letter), inside(addressOf("dead", { key, open: placeOf(letter) }), "Its dead letter"));
  get("consumers/dead-letters", { ...(key ? { key } : { from: rfc3339(record.timestamp) }), limit: 1_000 }).then(({ dead_letters: letters }) => show(letters.find(isOfIt)), () => {});
  return place;
}

/** The key as text, as filters take it; undefined where there is none, or it is masked. */
export const keyText = ({ key }) => (key?.text === MASK ? undefined : key?.text);

export function actions(one, value, curl, ...own) {
  const key = keyText(one);
  const ofKey = (tab, what) => key && inside(addressOf(tab, { key }), `${what} of this key`);
  const copies = [copyButton("Copy value", value), key && copyButton("Copy key", key), copyButton("Copy curl", curl)];
  return element("div", { class: "row" }, ...own, ...copies, ofKey("records", "Records"), ofKey("dead", "Dead letters"), maskedSign(one));
}

/** A link to the dead letters with the same error as one of them. */
export const likeOf = (letter) => linkToLike(`${nameOf(letter)}:${letter.error && letter.error !== MASK ? ` ${letter.error}` : ""}`);

/** A link to the dead letters with the same error; their numbers follow once they are known. */
function linkToLike(reason) {
  const link = inside(addressOf("dead", { reason }), "Dead letters like it");
  get("consumers/dead-letters/reasons", { reason }).then((counts) => link.append(" (", ...leftOf(counts), ")"), () => {});
  return link;
}

/** How many of some dead letters are still to be sent back, and since when; how many were. */
export function leftOf({ redrivable, redriven, more, oldest_redrivable: since }) {
  const left = redrivable === 0 ? ["none to send back"] : [`${count(redrivable)}${more ? "+" : ""} to send back, since `, timeElement(since)];
  return [...left, redriven > 0 ? `; ${count(redriven)} sent back before` : ""];
}

export const sentBackSign = ({ headers }) => headers.some(({ name }) => name === "dead-letter-rounds") && element("small", { class: "sign", title: "It comes from the dead letters." }, "sent back");

export const contents = (value, headers, error) => [
  element("h4", {}, "Value"), contentBlock(value, error ?? ""),
  element("h4", {}, "Headers"), facts(headers.map(({ name, value: content }) => [name, contentText(content)])),
];

/** Make a button that copies a text; `navigator.clipboard` would need TLS. */
function copyButton(label, text) {
  return button(label, ({ currentTarget: pressed }) => {
    const area = element("textarea", {}, text);
    pressed.after(area);
    area.select();
    say(pressed, document.execCommand("copy") ? "Copied" : "Copying failed");
    area.remove();
    pressed.focus();
    setTimeout(() => say(pressed, label), 2_000);
  });
}

export function openingRow(one, ...cells) {
  const link = element("a", { "data-inside": "", "data-open": placeOf(one) }, timeElement(one.timestamp));
  const row = element("tr", {}, ...cells.map((cell) => (cell === "time" ? element("td", { class: "time" }, link) : cell)));
  row.addEventListener("click", ({ target }) => !target.closest("a, button, input") && getSelection().isCollapsed && go(link.href));
  return row;
}

/** Let each link of a list open its record at the current address, and mark the open row. */
export function pointRows(list, open) {
  for (const link of list.querySelectorAll("a[data-open]")) {
    link.setAttribute("href", addressWith({ open: link.dataset.open }));
    link.ariaCurrent = link.dataset.open === open ? "true" : null;
  }
}
