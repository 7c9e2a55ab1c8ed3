/** Dead letters: why records could not be consumed, how many, and sending them back. */

import { address, addressOf } from "./address.js";
import { curlOf, get, post } from "./api.js";
import { contentBlock, contentText, facts, headerList } from "./content.js";
import { confirmed } from "./dialogs.js";
import { arrange, button, byId, cell, count, download, element, inside, inUse, plural, report, say, timeElement } from "./dom.js";
import { Filters } from "./filters.js";
import { look } from "./poll.js";
import { copyButton, fill, openingRow, pointRows } from "./record.js";
import { stream } from "./streams.js";

const SHOWN = 50;
const MOST = 1_000; // dead letters that one call sends back
const COUNT_AGAIN = 15_000; // ms after which they are counted again: other instances write some too
const REDRIVE = "consumers/dead-letters/redrive";
const NONE = "None.";
const UNKNOWN = "unknown"; // what another writer of dead letters did not say
const NEWER = "There may be newer ones.";

export class DeadLetters {
  #list = byId("dead-list");
  #said = byId("dead-said");
  #older = byId("older");
  #letters = [];
  #limit = SHOWN;
  #form = new Filters(byId("letter-filter"), "dead", byId("unfilter"));
  #filters = null;
  #shownFilters = null; // those of the letters in the list
  #sentBack = new Set(); // Kafka may take a moment longer to show what the answer of a redrive has told
  #selected = new Map();
  #reads = 0;
  #seen = null; // how many this instance had dead-lettered when they were read last
  #counted = null; // likewise for the count
  #countedAt = 0;

  constructor(notices) {
    this.notices = notices;
    byId("redrive-all").addEventListener("click", () => this.#redriveAll(this.#filters));
    byId("redrive-some").addEventListener("click", () => this.#redrive([...this.#selected.values()]));
    byId("reload").addEventListener("click", () => this.#reload());
    byId("export-letters").addEventListener("click", () => this.#export());
    this.#older.addEventListener("click", () => {
      this.#limit = Math.min(MOST, this.#limit + SHOWN);
      this.#read();
    });
  }

  /** Count them, and read them again, when this instance has written some; not while somebody looks at older ones. */
  async refresh({ dead_lettered_count: written, started_at: startedAt }) {
    const seen = `${startedAt} ${written}`;
    if (seen !== this.#counted || Date.now() - this.#countedAt > COUNT_AGAIN) {
      [this.#counted, this.#countedAt] = [seen, Date.now()];
      this.#count();
    }
    if (address().tab !== "dead" || seen === this.#seen) return;
    if (this.#limit > SHOWN || inUse(this.#list)) return say(this.#said, NEWER);
    this.#seen = seen;
    await this.#read();
  }

  /** Show what an address names. */
  visit(parameters) {
    this.#filters = this.#form.of(parameters);
    say(byId("redrive-all"), this.#filters ? "Send back all that match …" : "Send back all …");
    if (JSON.stringify(this.#filters) !== this.#shownFilters) this.#reload();
    this.#open(parameters.open);
  }

  #open(open) {
    const panel = byId("letter");
    pointRows(this.#list, open);
    if (!open) return (panel.hidden = true);
    const letter = this.#letters.find((one) => placeOf(one) === open);
    if (letter) return fill(panel, `Dead letter ${letter.partition} · ${letter.offset}`, ...partsOf(letter));
    fill(panel, `Dead letter ${open.replace("-", " · ")}`, element("p", { class: "muted" }, "It is not in the list: show older ones, or all."));
  }

  #count() {
    const read = () => get("consumers/dead-letters/reasons");
    return look(this.notices, "count of dead letters", read, (all) => this.#showCount(all), () => (this.#counted = null));
  }

  #showCount({ letters, redrivable, reasons, more }) {
    const tag = byId("dead-count");
    say(tag, count(redrivable) + (more ? "+" : ""));
    tag.title = `${count(redrivable)} of the newest ${count(letters)} can be sent back`;
    tag.classList.toggle("some", redrivable > 0);
    const make = (one) => element("li", {}, inside("", element("b", {}, words(one.error_type)), " ", element("span")));
    arrange(byId("reasons"), reasons, (one) => one.error_type ?? "", make, ({ firstElementChild: link }, one) => {
      link.setAttribute("href", addressOf("dead", { reason: one.error_type ?? "" }));
      say(link.lastElementChild, `${count(one.letters)}${one.redrivable < one.letters ? `, ${count(one.redrivable)} to send back` : ""}`);
    });
  }

  async #reload() {
    this.#limit = SHOWN;
    say(this.#said, "");
    await this.#read();
  }

  #read() {
    this.#reads += 1;
    const number = this.#reads;
    this.#shownFilters = JSON.stringify(this.#filters);
    const read = () => get("consumers/dead-letters", { limit: this.#limit, ...this.#filters });
    const show = ({ dead_letters: letters, next }) => {
      if (number !== this.#reads) return; // another one was asked for meanwhile
      this.#letters = letters;
      this.#older.hidden = next === null || this.#limit === MOST;
      this.#show();
    };
    return look(this.notices, "dead letters", read, show, () => (this.#seen = null)); // is read again with the next status
  }

  #show() {
    for (const letter of this.#letters) letter.redriven ||= this.#sentBack.has(placeOf(letter));
    this.#selected = new Map([...this.#selected].filter(([place]) => this.#letters.some((one) => placeOf(one) === place && !one.redriven)));
    arrange(this.#list, this.#letters, (letter) => `${placeOf(letter)} ${letter.redriven}`, (letter) => this.#row(letter));
    this.#showSelected();
    this.#open(address().tab === "dead" ? address().open : "");
    if (this.#letters.length === 0) say(this.#said, NONE);
    else if ([NONE, NEWER].includes(this.#said.textContent)) say(this.#said, "");
  }

  #select(place, letter) {
    if (letter) this.#selected.set(place, letter);
    else this.#selected.delete(place);
    this.#showSelected();
  }

  #showSelected() {
    byId("redrive-some").hidden = this.#selected.size === 0;
    say(byId("redrive-some"), `Send back the selected (${this.#selected.size}) …`);
  }

  #row(letter) {
    const place = placeOf(letter);
    const { origin } = letter;
    const free = letter.redrivable && !letter.redriven;
    const box = element("input", { type: "checkbox", "aria-label": `Select ${letter.partition} · ${letter.offset}` });
    box.checked = this.#selected.has(place);
    box.addEventListener("change", () => this.#select(place, box.checked && letter));
    const send = button("Send back", () => this.#redrive([letter]), { "aria-label": `Send back ${letter.partition} · ${letter.offset}` });
    const from = origin.offset === null ? (origin.topic ?? UNKNOWN) : inside(addressOf("records", { open: placeOf(origin) }), `${origin.partition} · ${count(origin.offset)}`);
    return openingRow(
      place,
      letter.timestamp,
      cell("", free && box),
      "time",
      cell("reason", element("b", {}, words(letter.error_type)), ` ${letter.error ?? ""}`),
      cell("from", from),
      cell("code wide", contentText(letter.key)),
      cell("wide", triesOf(letter)),
      cell("letter-state", stateOf(letter), free && send),
    );
  }

  /** Ask how many of the letters that match can be sent back, and send these. */
  #redriveAll(filters) {
    return report(this.#said, "Counting …", async () => {
      const { would_redrive: number, more } = await post(REDRIVE, { limit: MOST }, { ...filters, dry_run: true });
      if (number === 0) return "There is none to send back.";
      if (!(await agreed(number, more ? " There are more: repeat this for them." : ""))) return "Nothing was sent back.";
      const answer = await post(REDRIVE, { limit: number }, filters);
      this.#note(answer);
      return `${plural(answer.redriven, "was", "were")} sent back.${answer.more ? " There are more to send back." : ""}`;
    });
  }

  /** Send letters back, one by one; several of them need a confirmation. */
  async #redrive(chosen) {
    await report(this.#said, "Sending back …", async () => {
      if (chosen.length > 1 && !(await agreed(chosen.length))) return "Nothing was sent back.";
      let done = 0;
      try {
        for (const { partition, offset } of chosen) done += this.#note(await post(REDRIVE, { partition, offset }));
      } catch (failure) {
        throw done === 0 ? failure : new Error(`${failure.message} (${plural(done, "was", "were")} sent back before)`);
      }
      return `${plural(done, "was", "were")} sent back.`;
    });
    this.#list.querySelector(`[data-key="${placeOf(chosen[0])} true"] a`)?.focus(); // its button is gone
  }

  #note({ redriven, dead_letters: letters }) {
    for (const one of letters) this.#sentBack.add(placeOf(one));
    this.#show();
    this.#countedAt = 0;
    return redriven;
  }

  #export() {
    if (this.#letters.length === 0) return say(this.#said, "There is nothing to export.");
    download(`${stream}-dead-letters.ndjson`, "application/x-ndjson", this.#letters.map((one) => `${JSON.stringify(one)}\n`).join(""));
    say(this.#said, `${plural(this.#letters.length, "dead letter was", "dead letters were")} exported.`);
  }
}

const agreed = (number, more = "") =>
  confirmed(`${plural(number, "dead letter", "dead letters")} will be sent back to the topic and handled again.${more}`, `Send back ${count(number)}`);

const placeOf = ({ partition, offset }) => `${partition}-${offset}`;

/** The name of an error in words: `msgspec.ValidationError` is a validation error. */
function words(type) {
  if (type === null) return "Unknown";
  const name = type.split(".").at(-1).replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase();
  return name.charAt(0).toUpperCase() + name.slice(1);
}

const triesOf = ({ tries, rounds }) =>
  (tries === null ? "" : plural(tries, "try", "tries")) + (rounds > 0 ? `, back ${plural(rounds, "time", "times")}` : "");

function stateOf({ redriven, held, redrivable, group }) {
  if (redriven) return "sent back";
  if (!redrivable) return group === null ? "of another topic" : `of ${group}`;
  return held ? "held: only by itself " : "";
}

function partsOf(letter) {
  const { origin } = letter;
  const key = contentText(letter.key);
  const place = `${origin.topic ?? UNKNOWN}, partition ${origin.partition ?? UNKNOWN}, offset ${origin.offset ?? UNKNOWN}`;
  const from = element("span", {}, origin.offset === null ? place : inside(addressOf("records", { open: placeOf(origin) }), place));
  if (origin.timestamp !== null) from.append(", ", timeElement(origin.timestamp));
  return [
    element("p", { class: "trouble" }, element("b", {}, words(letter.error_type)), ` ${letter.error ?? ""}`),
    element(
      "div",
      { class: "row" },
      copyButton("Copy value", () => contentText(letter.value)),
      copyButton("Copy key", () => key),
      copyButton("Copy curl", () => curlOf("consumers/dead-letters", { key: letter.key === null ? "" : key, limit: 10 })),
      letter.key !== null && inside(addressOf("dead", { key }), "Dead letters of this key"),
      letter.key !== null && inside(addressOf("records", { key }), "Records of this key"),
    ),
    facts([
      ["error", letter.error_type ?? UNKNOWN],
      ["dead letter", element("span", {}, `partition ${letter.partition}, offset ${letter.offset}, `, timeElement(letter.timestamp))],
      ["came from", from],
      ["group", letter.group ?? UNKNOWN],
      ["verdict", letter.verdict ?? UNKNOWN],
      ["tries", triesOf(letter) || UNKNOWN],
      ["key", key],
    ]),
    element("h4", {}, "Value"),
    contentBlock(letter.value, letter.error ?? ""),
    element("h4", {}, "Headers"),
    headerList(letter.headers),
  ];
}
