/** The panel beside a list: one record or dead letter at length, with what can be done with it. */

import { addressOf, addressWith, go } from "./address.js";
import { curlOf, get } from "./api.js";
import { contentBlock, facts, headerList, keyText, valueBlock, valueText } from "./content.js";
import { button, count, element, inside, say, timeElement } from "./dom.js";

/** Fill a panel and show it; its link closes it. */
export function fill(panel, heading, ...children) {
  const close = inside(addressWith({ open: "" }), "Close");
  const head = element("div", { class: "bar" }, element("h3", {}, heading), close);
  panel.replaceChildren(element("div", {}, head, ...children));
  panel.hidden = false;
}

/** Read a record from the topic and show it in a panel; `sendAgain` opens the form with its value. */
export async function showRecord(panel, open, sendAgain) {
  const place = open.split("-");
  const path = `consumers/messages/${place.map(encodeURIComponent).join("/")}`;
  const heading = `Partition ${place[0]}, offset ${place[1]}`;
  panel.dataset.open = open;
  fill(panel, heading, element("p", { class: "muted" }, "Reading it from the topic …"));
  try {
    const record = await get(path);
    if (panel.dataset.open === open) fill(panel, heading, ...partsOf(record, path, sendAgain));
  } catch (failure) {
    if (panel.dataset.open !== open) return;
    const next = failure.problem?.next;
    const further = next != null && inside(addressWith({ open: `${place[0]}-${next}` }), `Show the next one, offset ${count(next)}`);
    fill(panel, heading, element("p", { class: "trouble" }, `It cannot be shown: ${failure.message}`), further);
  }
}

function partsOf(record, path, sendAgain) {
  const text = valueText(record);
  const key = record.key === null ? null : keyText(record.key);
  return [
    element(
      "div",
      { class: "row" },
      copyButton("Copy value", () => text),
      key !== null && copyButton("Copy key", () => key),
      copyButton("Copy curl", () => curlOf(path)),
      record.value && button("Send again …", () => sendAgain(record.value)),
      key !== null && inside(addressOf("dead", { key }), "Dead letters of this key"),
    ),
    facts([
      ["topic", record.topic],
      ["time", timeElement(record.timestamp)],
      ["key", key ?? "null"],
      ["size", `${count(bytesOf(text))} bytes${record.value ? " as compact JSON" : ""}`],
    ]),
    element("h4", {}, "Value"),
    record.error && element("p", { class: "trouble" }, record.error),
    record.value ? valueBlock(record.value) : contentBlock(record.content, record.error ?? ""),
    element("h4", {}, "Headers"),
    headerList(record.headers),
  ];
}

const bytesOf = (text) => new TextEncoder().encode(text).length;

/** A button that copies a text, also where the browser's clipboard is closed to pages without TLS. */
export function copyButton(label, textOf) {
  return button(label, async ({ currentTarget: pressed }) => {
    let done = true;
    try {
      await navigator.clipboard.writeText(textOf());
    } catch {
      const area = element("textarea", {}, textOf());
      pressed.after(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
    }
    say(pressed, done ? "Copied" : "Copying failed");
    setTimeout(() => say(pressed, label), 2_000);
  });
}

/** A row of a list that opens at its link, wherever it is pressed. */
export function openingRow(open, timestamp, ...cells) {
  const link = element("a", { "data-inside": "", "data-open": open }, timeElement(timestamp));
  const row = element("tr", {}, ...cells.map((cell) => (cell === "time" ? element("td", { class: "time" }, link) : cell)));
  row.addEventListener("click", ({ target }) => {
    if (!target.closest("a, button, input") && getSelection().isCollapsed) go(link.href);
  });
  return row;
}

/** Point the links of a list to the present address with their record open, and mark the row that is open. */
export function pointRows(list, open) {
  for (const link of list.querySelectorAll("a[data-open]")) {
    link.setAttribute("href", addressWith({ open: link.dataset.open }));
    link.closest("tr").classList.toggle("open", link.dataset.open === open);
    if (link.dataset.open === open) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}
