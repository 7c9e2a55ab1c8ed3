/** The newest records of the topic, and the search for records. */

import { address, addressWith, Filters, go } from "./address.js";
import { get } from "./api.js";
import { brief, contentText, keyContent, maskedSign, textOf, valueText } from "./content.js";
import { arrange, byId, count, element, inUse, onExport, onSubmit, plural, report, say, timeElement } from "./dom.js";
import { close, openingRow, placeOf, pointRows, sentBackSign, showRecord } from "./record.js";
import { stream } from "./streams.js";

const SHOWN = 30; // newest records
const PAGE = 100; // found records after which a search pauses
const COLUMNS = `columns of ${stream}`;
const MOST_FIELDS = 40; // fields offered as columns

export class Records {
  #list = byId("record-list");
  #said = byId("records-said");
  #shown = [];
  #found = null; // what a search has found so far; null while the newest are shown
  #searched = "null"; // the filters of that search
  #checks = 0; // of records that stay listed
  #fields = new Set();
  #columns = localStorage.getItem(COLUMNS)?.split("\n").filter(Boolean) ?? [];
  #filters = new Filters(byId("search"), "records", byId("newest"));
  #sendAgain;

  constructor(sendAgain) {
    this.#sendAgain = sendAgain;
    onSubmit(byId("lookup"), (place) => go(addressWith({ tab: "records", open: placeOf(place) })));
    byId("onward").addEventListener("click", () => (this.#found.next === null ? this.#begin(this.#found.filters) : this.#searchOn()));
    byId("search").addEventListener("submit", () => (this.#searched = ""), true); // the same search once more is a new one
    byId("follow").addEventListener("change", ({ target }) => say(this.#said, ...(target.checked ? [] : ["As of ", timeElement(Date.now()), "."])));
    byId("halt-search").addEventListener("click", () => (this.#found.stopped = true));
    onExport("export-records", this.#list, `${stream}.ndjson`, this.#said, () => this.#shown.map((record) => `${JSON.stringify(record)}\n`));
    onExport("export-csv", this.#list, `${stream}.csv`, this.#said, () => csvOf(this.#shown));
    this.#showHead();
  }

  /** How the newest records are read: not during a search, nor while the list is in use. */
  newest = {
    name: "newest records",
    pause: 2_000,
    when: () => address().tab === "records" && this.#found === null && (byId("follow").firstElementChild.checked || this.#shown.length === 0) && !inUse(this.#list),
    read: () => get("consumers/messages", { scope: "topic", limit: SHOWN }),
    show: ({ messages }) => {
      if (this.#found !== null) return; // a search has begun meanwhile
      this.#arrange(messages.toReversed());
      say(this.#said, messages.length === 0 ? "No records yet." : "");
    },
    lose: ({ message }) => this.#found === null && say(this.#said, `The records cannot be read: ${message}`),
  };

  /** Read one of the records that stay listed or open again: what the topic no longer has is shown no longer. */
  async check() {
    const panel = byId("record");
    const open = panel.querySelector(".facts") ? [panel.dataset.open] : [];
    const places = [...open, ...(this.newest.when() ? [] : this.#shown.map(placeOf))];
    if (address().tab !== "records" || places.length === 0) return;
    const place = places[this.#checks++ % places.length];
    const failure = await get(`consumers/messages/${place.replace("-", "/")}`).then(() => null, (error) => error);
    if (failure?.status !== 404) return;
    this.#arrange(this.#shown.filter((one) => placeOf(one) !== place));
    if (this.#found) this.#found.records = this.#shown;
    if (panel.dataset.open === place) showRecord(panel, place, this.#sendAgain);
    say(this.#said, `The topic no longer has partition ${place.replace("-", ", offset ")}.`);
  }

  visit(parameters) {
    const filters = this.#filters.of(parameters);
    if (JSON.stringify(filters) !== this.#searched) this.#begin(filters);
    const panel = byId("record");
    if (!parameters.open) close(panel, this.#list);
    else if (panel.hidden || panel.dataset.open !== parameters.open) showRecord(panel, parameters.open, this.#sendAgain);
    pointRows(this.#list, parameters.open);
  }

  #begin(filters) {
    this.#searched = JSON.stringify(filters);
    this.#arrange([]);
    this.#said.dataset.search = "none"; // the style shows the buttons
    say(byId("records-title"), filters === null ? "Newest records" : "Records found");
    this.#found = filters && { filters, records: [], scanned: 0, next: null, page: 0, at: Date.now() };
    if (filters === null) report(this.#said, "", () => "…");
    else this.#searchOn();
  }

  /** Search until a page is found, the user stops it, or the topic's start is reached. */
  async #searchOn() {
    const found = this.#found;
    found.stopped = false;
    found.page += PAGE;
    this.#said.dataset.search = "under way";
    await report(this.#said, "Searching …", async () => {
      for (;;) {
        const answer = await get("consumers/messages", { scope: "topic", ...found.filters, limit: found.page - found.records.length, before: found.next });
        if (found !== this.#found) return this.#said.textContent;
        found.records.push(...answer.messages.toReversed());
        found.scanned += answer.scanned;
        found.next = answer.next;
        this.#arrange(found.records);
        const passed = `${count(found.records.length)} found; ${plural(found.scanned, "record", "records")} looked at`;
        const back = found.next === null || answer.reached === null ? [] : [", back to ", timeElement(answer.reached)];
        const far = [passed, ...back, ...(found.next === null ? ["; there are no more as of ", timeElement(found.at), "."] : ["; there are more."])];
        if (found.next === null && found.filters.q && found.records.length === 0) far.push(" Upper and lower case matter: try it written otherwise.");
        if (found.stopped || found.next === null || found.records.length >= found.page) return far;
        say(this.#said, "Searching … ", ...far);
      }
    });
    if (found !== this.#found) return;
    this.#said.dataset.search = "paused";
    say(byId("onward"), found.next === null ? "Search again" : "Go on");
  }

  #arrange(records) {
    this.#shown = records;
    this.#offerFields(records);
    arrange(this.#list, records, placeOf, (record) => recordRow(record, this.#columns, this.#found?.filters.q ?? ""));
    pointRows(this.#list, address().open);
  }

  #offerFields(records) {
    const names = records.flatMap(({ value }) => Object.keys(value ?? {}));
    this.#fields = new Set([...this.#fields, ...names].slice(0, MOST_FIELDS));
    arrange(byId("columns"), this.#fields, String, (name) => {
      const box = Object.assign(element("input", { type: "checkbox" }), { checked: this.#columns.includes(name) });
      box.addEventListener("change", () => this.#choose([...this.#columns.filter((one) => one !== name), ...(box.checked ? [name] : [])]));
      return element("label", { class: "inline" }, box, name);
    });
  }

  #choose(columns) {
    this.#columns = columns;
    localStorage.setItem(COLUMNS, columns.join("\n"));
    this.#showHead();
    this.#list.replaceChildren();
    this.#arrange(this.#shown);
  }

  #showHead = () => byId("record-head").replaceChildren(...["Time", "Partition", "Offset", "Key", ...this.#columns, "Value"].map((name) => element("th", { scope: "col" }, name)));
}

/** The records as CSV: place, key and each field. A spreadsheet must not run a text as a formula, also where `;` or a tab separates its cells. */
function csvOf(records) {
  const fields = [...new Set(records.flatMap(({ value }) => Object.keys(value ?? {})))];
  const places = ["partition", "offset", "timestamp"];
  const safe = (value) => (typeof value === "number" ? String(value) : textOf(value ?? "").replace(/(?<=(?:^|[;\t\r\n])["\s]*)[=+\-@＝＋－＠]/g, "'$&"));
  const quoted = (value) => `"${safe(value).replaceAll('"', '""')}"`;
  const rest = ({ key, value, content }) => [key && contentText(key), ...fields.map((name) => value?.[name]), value ? "" : contentText(content)];
  const rows = records.map((one) => [...places.map((name) => one[name]), ...rest(one)]);
  return [[...places, "key", ...fields, "not decoded"], ...rows].map((row) => `${row.map(quoted).join(",")}\r\n`);
}

function recordRow(record, columns, wanted) {
  const named = (name, kind, ...children) => element("td", { class: kind, "data-name": name }, ...children);
  const column = (name) => named(name, "column", ...brief(name in (record.value ?? {}) ? textOf(record.value[name]) : "", wanted));
  return openingRow(
    record,
    "time",
    named("partition", "number", String(record.partition)), named("offset", "number", String(record.offset)),
    named("key", "code", keyContent(record)),
    ...columns.map(column),
    named("value", "code value", maskedSign(record), sentBackSign(record), record.error && element("span", { class: "trouble" }, `${record.error} `), ...brief(valueText(record), wanted)),
  );
}
