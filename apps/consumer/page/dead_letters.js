/** Dead letters: what they were, why they could not be consumed, and sending them back. */

import { get, post } from "./api.js";
import { cell, contentBlock, contentText, facts, headerList, timeElement } from "./content.js";
import { arrange, byId, count, element, exactTime, inUse, onSubmit, plural, report, say } from "./dom.js";

const SHOWN = 20;
const NONE = "None.";
const UNKNOWN = "unknown"; // what another writer of dead letters did not say
const NEWER = "There may be newer ones.";

export class DeadLetters {
  #list = byId("dead-list");
  #said = byId("dead-said");
  #older = byId("older");
  #letters = [];
  #next = null;
  #pages = 1;
  #reason = "";
  #sentBack = new Set(); // Kafka may take a moment longer to show what the answer of a redrive has told
  #reads = 0;
  #seen = null; // how many this instance had dead-lettered when they were read last

  constructor(notices) {
    this.notices = notices;
    onSubmit(byId("reason"), ({ reason }) => {
      this.#reason = reason;
      return this.#reload();
    });
    onSubmit(byId("redrive"), ({ limit }) => this.#redrive({ limit: Number(limit) }));
    byId("reload").addEventListener("click", () => this.#reload());
    this.#older.addEventListener("click", () => this.#showOlder());
  }

  /** Read them again when this instance has written some, unless somebody looks at one of them or at older ones. */
  async refresh({ dead_lettered_count: written, started_at: startedAt }) {
    const seen = `${startedAt} ${written}`;
    if (seen === this.#seen) return;
    if (this.#pages > 1 || inUse(this.#list)) return say(this.#said, NEWER);
    this.#seen = seen;
    await this.#read();
  }

  async #reload() {
    this.#pages = 1;
    say(this.#said, "");
    await this.#read();
  }

  async #read() {
    this.#reads += 1;
    const read = this.#reads;
    try {
      const page = await get("consumers/dead-letters", { limit: SHOWN, reason: this.#reason });
      if (read !== this.#reads) return; // another one was asked for meanwhile
      this.#letters = page.dead_letters;
      this.#show(page.next);
      this.notices.succeeded("dead letters");
    } catch (failure) {
      this.#seen = null; // comes again with the next status
      this.notices.failed("dead letters", failure);
    }
  }

  async #showOlder() {
    const read = this.#reads;
    this.#older.disabled = true; // two clicks are one
    try {
      const page = await get("consumers/dead-letters", { limit: SHOWN, reason: this.#reason, before: this.#next });
      if (read !== this.#reads) return;
      this.#pages += 1;
      this.#letters.push(...page.dead_letters);
      this.#show(page.next);
      this.notices.succeeded("older dead letters");
    } catch (failure) {
      this.notices.failed("older dead letters", failure);
    } finally {
      this.#older.disabled = false;
    }
  }

  #show(next) {
    this.#next = next;
    this.#older.hidden = next === null;
    for (const letter of this.#letters) letter.redriven ||= this.#sentBack.has(placeOf(letter));
    const key = (letter) => `${placeOf(letter)} ${letter.redriven}`;
    arrange(this.#list, this.#letters, key, (letter) => letterRow(letter, (one) => this.#redrive(one)));
    if (this.#letters.length === 0) say(this.#said, NONE);
    else if ([NONE, NEWER].includes(this.#said.textContent)) say(this.#said, "");
  }

  async #redrive(order) {
    await report(this.#said, "Sending back …", async () => {
      const done = await post("consumers/dead-letters/redrive", order);
      for (const one of done.dead_letters) this.#sentBack.add(placeOf(one));
      this.#show(this.#next);
      if (done.redriven === 0) return "There is none to send back.";
      const sent = `${plural(done.redriven, "was", "were")} sent back.`;
      return done.more && done.redriven < order.limit ? `${sent} There are more to send back.` : sent;
    });
    const key = `${placeOf(order)} true`; // its button is gone, and with it the place of the keyboard
    this.#list.querySelector(`[data-key="${key}"] summary`)?.focus();
  }
}

const placeOf = ({ partition, offset }) => `${partition}-${offset}`;

function letterRow(letter, redrive) {
  const { origin } = letter;
  const summary = element(
    "summary",
    {},
    cell("time", "time", timeElement(letter.timestamp)),
    cell("reason", "reason", `${letter.error_type ?? UNKNOWN}: ${letter.error ?? ""}`),
    cell("from", "origin", `${origin.topic ?? UNKNOWN} ${origin.partition ?? ""} · ${origin.offset === null ? "" : count(origin.offset)}`),
    cell("tries", "tries", letter.tries === null ? "" : plural(letter.tries, "try", "tries"), letter.rounds > 0 ? `, back ${plural(letter.rounds, "time", "times")}` : ""),
    cell("state", "letter-state", stateOf(letter)),
  );
  const button = element("button", { type: "button" }, "Send back");
  button.setAttribute("aria-label", `Send back ${letter.partition} · ${letter.offset}`);
  button.addEventListener("click", async () => {
    button.disabled = true;
    await redrive({ partition: letter.partition, offset: letter.offset });
    button.disabled = false;
  });
  return element("li", { class: "letter" }, element("details", {}, summary, more(letter)), letter.redrivable && !letter.redriven && button);
}

function placeInTopic({ topic, partition, offset, timestamp }) {
  const time = timestamp === null ? UNKNOWN : exactTime(timestamp);
  return `${topic ?? UNKNOWN}, partition ${partition ?? UNKNOWN}, offset ${offset ?? UNKNOWN}, ${time}`;
}

function stateOf({ redriven, held, redrivable, group }) {
  if (redriven) return "sent back";
  if (!redrivable) return group === null ? "of another topic" : `of ${group}`;
  return held ? "held: only by itself" : "";
}

function more(letter) {
  const { origin } = letter;
  return element(
    "div",
    { class: "more" },
    facts([
      ["dead letter", `partition ${letter.partition}, offset ${letter.offset}, ${exactTime(letter.timestamp)}`],
      ["came from", placeInTopic(origin)],
      ["group", letter.group ?? UNKNOWN],
      ["key", contentText(letter.key)],
    ]),
    element("h3", {}, "Value"),
    contentBlock(letter.value),
    element("h3", {}, "Headers"),
    headerList(letter.headers),
  );
}
