/** The newest records of the topic, and those that somebody looks for. */

import { address, addressWith, go } from "./address.js";
import { get } from "./api.js";
import { brief, contentText, keyText, textOf, valueText } from "./content.js";
import { arrange, byId, count, download, element, inUse, onSubmit, plural, report, say, time } from "./dom.js";
import { Filters } from "./filters.js";
import { openingRow, pointRows, showRecord } from "./record.js";
import { stream } from "./streams.js";

const SHOWN = 30; // newest records
const PAGE = 100; // found records after which a search waits to be told to go on
const COLUMNS = `columns of ${stream}`;
const MOST_FIELDS = 40; // fields offered as columns

export class Records {
  #list = byId("record-list");
  #said = byId("records-said");
  #onward = byId("onward");
  #halt = byId("halt-search");
  #shown = [];
  #found = null; // what a search has found so far; null while the newest are shown
  #searched = "null"; // the filters of that search
  #fields = new Set();
  #columns = localStorage.getItem(COLUMNS)?.split("\n").filter(Boolean) ?? [];
  #filters = new Filters(byId("search"), "records", byId("newest"));
  #sendAgain;

  constructor(sendAgain) {
    this.#sendAgain = sendAgain;
    onSubmit(byId("lookup"), ({ partition, offset }) => go(addressWith({ tab: "records", open: `${partition}-${offset}` })));
    this.#onward.addEventListener("click", () => this.#searchOn());
    this.#halt.addEventListener("click", () => (this.#found.stopped = true));
    for (const one of document.querySelectorAll(".export")) one.addEventListener("click", () => this.#export(one.dataset.as));
    this.#showHead();
  }

  /** Whether the newest records are to be read now: not while somebody searches, or holds the list. */
  get following() {
    return address().tab === "records" && this.#found === null && byId("follow").firstElementChild.checked && !inUse(this.#list);
  }

  read() {
    return get("consumers/messages", { scope: "topic", limit: SHOWN });
  }

  /** Show the newest records of the topic, the newest first. */
  showNewest({ messages }) {
    if (this.#found !== null) return; // somebody searches meanwhile
    this.#arrange(messages.toReversed());
    say(this.#said, messages.length === 0 ? "No records yet." : "");
  }

  /** Show what an address names. */
  visit(parameters) {
    const filters = this.#filters.of(parameters);
    if (JSON.stringify(filters) !== this.#searched) this.#begin(filters);
    const panel = byId("record");
    if (!parameters.open) panel.hidden = true;
    else if (panel.hidden || panel.dataset.open !== parameters.open) showRecord(panel, parameters.open, this.#sendAgain);
    pointRows(this.#list, parameters.open);
  }

  #begin(filters) {
    this.#searched = JSON.stringify(filters);
    this.#list.replaceChildren();
    this.#shown = [];
    this.#said.classList.remove("trouble");
    say(this.#said, "");
    this.#onward.hidden = this.#halt.hidden = true;
    byId("follow").hidden = filters !== null;
    say(byId("records-title"), filters === null ? "Newest records" : "Records found");
    this.#found = filters && { filters, records: [], scanned: 0, next: null, page: 0 };
    if (filters !== null) this.#searchOn();
  }

  /** Search until enough is found, somebody stops it, or the topic begins. */
  async #searchOn() {
    const found = this.#found;
    found.stopped = false;
    found.page += PAGE;
    this.#onward.hidden = true;
    this.#halt.hidden = false;
    await report(this.#said, "Searching …", async () => {
      for (;;) {
        const limit = found.page - found.records.length;
        const answer = await get("consumers/messages", { scope: "topic", ...found.filters, limit, before: found.next });
        if (found !== this.#found) return this.#said.textContent;
        found.records.push(...answer.messages.toReversed());
        found.scanned += answer.scanned;
        found.next = answer.next;
        this.#arrange(found.records);
        const far = `${count(found.records.length)} found; ${howFar(found, answer.reached)}`;
        if (found.stopped || found.next === null || found.records.length >= found.page) return far;
        say(this.#said, `Searching … ${far}`);
      }
    });
    if (found !== this.#found) return;
    this.#halt.hidden = true;
    this.#onward.hidden = found.next === null;
  }

  #arrange(records) {
    this.#shown = records;
    this.#offerFields(records);
    const wanted = this.#found?.filters.q ?? "";
    const key = ({ partition, offset }) => `${partition}-${offset}`;
    arrange(this.#list, records, key, (record) => recordRow(record, this.#columns, wanted));
    pointRows(this.#list, address().open);
  }

  /** Offer the fields of these records as columns. */
  #offerFields(records) {
    for (const { value } of records) {
      if (value && this.#fields.size < MOST_FIELDS) for (const name of Object.keys(value)) this.#fields.add(name);
    }
    arrange(byId("columns").lastElementChild, ["", ...this.#fields], String, (name) => this.#choice(name));
  }

  #choice(name) {
    if (name === "") return element("legend", {}, "Fields with a column of their own");
    const box = element("input", { type: "checkbox" });
    box.checked = this.#columns.includes(name);
    box.addEventListener("change", () => {
      this.#columns = [...this.#columns.filter((one) => one !== name), ...(box.checked ? [name] : [])];
      localStorage.setItem(COLUMNS, this.#columns.join("\n"));
      this.#showHead();
      this.#list.replaceChildren();
      this.#arrange(this.#shown);
    });
    return element("label", { class: "inline" }, box, name);
  }

  #showHead() {
    const heads = [["Time"], ["Partition", "number"], ["Offset", "number"], ["Key"], ...this.#columns.map((name) => [name]), ["Value"]];
    byId("record-head").replaceChildren(...heads.map(([name, kind = ""]) => element("th", { scope: "col", class: kind }, name)));
  }

  #export(as) {
    if (this.#shown.length === 0) return say(this.#said, "There is nothing to export.");
    const content = as === "csv" ? csvOf(this.#shown) : this.#shown.map((record) => `${JSON.stringify(record)}\n`).join("");
    download(`${stream}.${as}`, as === "csv" ? "text/csv" : "application/x-ndjson", content);
    say(this.#said, `${plural(this.#shown.length, "record was", "records were")} exported.`);
  }
}

function howFar({ scanned, next }, reached) {
  const passed = `${plural(scanned, "record", "records")} looked at`;
  if (next === null) return `${passed}, there are no more.`;
  return reached === null ? `${passed}, there are more.` : `${passed}, back to ${time(reached)}; there are more.`;
}

/** The records as a table: their place, and each field of their values. A spreadsheet must not take a text for a formula. */
function csvOf(records) {
  const fields = [...new Set(records.flatMap(({ value }) => Object.keys(value ?? {})))];
  const places = ["partition", "offset", "timestamp"];
  const quoted = (value) => {
    const text = value == null ? "" : typeof value === "string" ? value.replace(/^[=+\-@\t\r]/, "'$&") : textOf(value);
    return `"${text.replaceAll('"', '""')}"`;
  };
  const rows = records.map((one) => [
    ...places.map((name) => one[name]),
    one.key === null ? "" : keyText(one.key),
    ...fields.map((name) => one.value?.[name]),
    one.value ? "" : contentText(one.content),
  ]);
  return [[...places, "key", ...fields, "not decoded"], ...rows].map((row) => `${row.map(quoted).join(",")}\r\n`).join("");
}

function recordRow(record, columns, wanted) {
  const text = valueText(record);
  const named = (name, kind, ...children) => element("td", { class: kind, "data-name": name }, ...children);
  return openingRow(
    `${record.partition}-${record.offset}`,
    record.timestamp,
    "time",
    named("partition", "number", String(record.partition)),
    named("offset", "number", String(record.offset)),
    named("key", "code", keyText(record.key)),
    ...columns.map((name) => named(name, "column", ...brief(record.value && name in record.value ? textOf(record.value[name]) : "", wanted))),
    named("value", "code value", record.error && element("span", { class: "trouble" }, `${record.error} `), ...brief(text, wanted)),
  );
}
