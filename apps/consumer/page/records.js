/** The newest records that this instance has consumed, and those that somebody looks for on the topic. */

import { get } from "./api.js";
import { block, cell, contentBlock, contentText, facts, headerList, timeElement } from "./content.js";
import { arrange, byId, count, element, exactTime, inUse, onSubmit, plural, report, rfc3339, say, time } from "./dom.js";

const SHOWN = 30;
const BRIEF = 300; // characters of a value in its row; it opens to the whole

export class Records {
  #list = byId("record-list");
  #said = byId("records-said");
  #follow = byId("follow");
  #onward = byId("onward");
  #newest = byId("newest");
  #found = null; // what a search has found so far; null while the newest are shown

  constructor() {
    onSubmit(byId("search"), (fields) => this.#search(fields));
    onSubmit(byId("lookup"), (fields) => this.#lookUp(fields.partition, fields.offset));
    this.#newest.addEventListener("click", () => this.#backToNewest());
    this.#onward.addEventListener("click", () => this.#goOn());
  }

  /** Whether the newest records are to be read now: not while somebody looks at some of them. */
  get following() {
    return this.#found === null && this.#follow.firstElementChild.checked && !inUse(this.#list);
  }

  read() {
    return get("consumers/messages", { limit: SHOWN });
  }

  /** Show the newest consumed, the newest first. */
  showNewest({ messages }) {
    if (!this.following) return; // somebody has opened a row meanwhile
    this.#arrange(messages.toReversed());
    say(this.#said, messages.length === 0 ? "None consumed yet." : "");
  }

  #arrange(records) {
    arrange(this.#list, records, (record) => `${record.partition}-${record.offset}`, recordRow);
  }

  async #search(fields) {
    const parameters = { scope: "topic", limit: SHOWN, ...fields, from: rfc3339(fields.from), to: rfc3339(fields.to) };
    this.#begin();
    this.#found = { parameters, records: [], scanned: 0, next: null };
    await this.#searchOn("Searching …");
  }

  async #searchOn(doing) {
    const found = this.#found;
    this.#onward.hidden = true;
    await report(this.#said, doing, async () => {
      try {
        const answer = await get("consumers/messages", { ...found.parameters, before: found.next });
        found.records.push(...answer.messages.toReversed());
        found.scanned += answer.scanned;
        found.next = answer.next;
        if (found === this.#found) this.#arrange(found.records);
        return `${count(found.records.length)} found; ${howFar(found, answer.reached)}`;
      } finally {
        if (found === this.#found) this.#onward.hidden = found.next === null;
      }
    });
  }

  async #lookUp(partition, offset) {
    this.#begin();
    await report(this.#said, "Looking it up …", async () => {
      try {
        const record = await get(`consumers/messages/${partition}/${offset}`);
        this.#arrange([record]);
        this.#list.querySelector("details").open = true;
        return `Partition ${partition}, offset ${count(Number(offset))}:`;
      } catch (failure) {
        const next = failure.problem?.next;
        if (next !== undefined && next !== null) this.#offerNext(partition, next);
        throw failure;
      }
    });
  }

  #offerNext(partition, next) {
    const button = element("button", { type: "button" }, `Show the next one, offset ${count(next)}`);
    button.addEventListener("click", () => this.#lookUp(partition, next));
    this.#list.replaceChildren(element("li", {}, button));
  }

  #goOn() {
    return this.#searchOn("Searching on …");
  }

  #begin() {
    this.#found = { records: [], next: null };
    this.#list.replaceChildren();
    this.#follow.hidden = true;
    this.#newest.hidden = false;
    this.#onward.hidden = true;
    say(byId("records-title"), "Records of the topic");
  }

  #backToNewest() {
    this.#found = null;
    this.#list.replaceChildren();
    this.#follow.hidden = false;
    this.#newest.hidden = true;
    this.#onward.hidden = true;
    this.#said.classList.remove("trouble");
    say(this.#said, "");
    say(byId("records-title"), "Newest records");
    this.#follow.firstElementChild.focus();
  }
}

function howFar({ scanned, next }, reached) {
  const passed = `${plural(scanned, "record", "records")} looked at`;
  if (next === null) return `${passed}, there are no more.`;
  return reached === null ? `${passed}, there are more.` : `${passed}, back to ${time(reached)}; there are more.`;
}

/** A row that opens to the record as it stands on the topic, with its headers. */
function recordRow(record) {
  const more = element("div", { class: "more" });
  const summary = element(
    "summary",
    {},
    cell("time", "time", timeElement(record.timestamp)),
    cell("partition", "number", String(record.partition)),
    cell("offset", "number", String(record.offset)),
    cell("key", "code", keyText(record.key)),
    cell("value", "value", inBrief(record)),
  );
  const details = element("details", {}, summary, more);
  details.addEventListener("toggle", () => {
    if (details.open && more.childElementCount === 0) open(record, more);
  });
  return element("li", {}, details);
}

/** A key as the window tells it (a text) or as the topic does (a content). */
const keyText = (key) => (typeof key === "string" ? key : contentText(key));

function inBrief(record) {
  return record.value ? JSON.stringify(record.value).slice(0, BRIEF) : (record.error ?? "");
}

/** Show a record; one of the window is read again from the topic, for its headers. */
async function open(record, more) {
  if (record.headers !== undefined) return showWhole(record, more);
  more.append(element("p", { class: "muted" }, "Reading it from the topic …"));
  try {
    showWhole(await get(`consumers/messages/${record.partition}/${record.offset}`), more);
  } catch (failure) {
    more.replaceChildren(
      element("p", { class: "trouble" }, `It cannot be read from the topic: ${failure.message}`),
      element("h3", {}, "Value, as it was consumed"),
      block(JSON.stringify(record.value, null, 2)),
    );
  }
}

function showWhole(record, more) {
  more.replaceChildren(
    facts([
      ["topic", record.topic],
      ["time", exactTime(record.timestamp)],
      ["key", keyText(record.key)],
    ]),
    element("h3", {}, "Value"),
    record.error ? element("p", { class: "trouble" }, record.error) : "",
    record.value ? block(JSON.stringify(record.value, null, 2)) : contentBlock(record.content),
    element("h3", {}, "Headers"),
    headerList(record.headers),
  );
}
