/** Dead letters: why records were refused, how many there are, and the actions on them. */

import { address, addressOf, Filters } from "./address.js";
import { curlOf, get, post } from "./api.js";
import { block, contentBlock, contentText, facts, MASK, maskedSign } from "./content.js";
import { arrange, button, byId, cell, confirmed, count, element, inside, inUse, onExport, plural, report, say, time, timeElement, turn } from "./dom.js";
import { GONE, look } from "./looks.js";
import { actions, close, contents, fill, openingRow, placeOf, pointRows } from "./record.js";
import { stream } from "./streams.js";

const SHOWN = 50;
const MAX_LETTERS = 1_000; // dead letters per call at most
const REREAD_MS = 15_000; // reads them again, because other instances write some too
const NONE = "None.";
const UNKNOWN = "unknown"; // another writer of dead letters left it out

/** The actions on dead letters, by the name of the call, with their words. */
const ACTIONS = {
  redrive: { verb: "Send back", done: "sent back", will: "sent back to the topic and handled again. Fix the handler first: records that fail again hold up their partitions" },
  discard: { verb: "Discard", done: "discarded", will: "discarded: not listed and not sent back until you restore them" },
  restore: { verb: "Restore", done: "restored", will: "restored: listed again, and ready to be sent back" },
};

export class DeadLetters {
  #list = byId("dead-list");
  #said = byId("dead-said");
  #older = byId("older");
  #form = new Filters(byId("letter-filter"), "dead", byId("unfilter"));
  #filters; // of the list: null for no filter, undefined before the first read
  #letters = [];
  #limit = SHOWN;
  #matching = null; // how many matching letters the buttons can act on
  #seen = null; // the status that the last read was for
  #gone = false;

  constructor() {
    for (const name of Object.keys(ACTIONS)) byId(name).addEventListener("click", () => this.#act(name, this.#selected));
    this.#list.addEventListener("change", () => this.#offer());
    byId("reasons").addEventListener("click", ({ target }) => target.closest("a") && byId("redrive").focus());
    byId("reload").addEventListener("click", () => this.#reload(this.#filters && { ...this.#filters }));
    onExport("export-letters", `${stream}-dead-letters.ndjson`, this.#said, () => this.#letters.map((one) => `${JSON.stringify(one)}\n`));
    this.#older.addEventListener("click", () => {
      this.#limit = Math.min(MAX_LETTERS, this.#limit + SHOWN);
      this.#read();
    });
  }

  /** Read the list again after this instance wrote some, and periodically; not while older ones are shown. */
  refresh(status) {
    this.#gone = status === null;
    this.#offer();
    if (this.#gone) return;
    const seen = `${status.started_at} ${status.dead_lettered_count} ${Math.floor(Date.now() / REREAD_MS)}`;
    if (seen === this.#seen) return;
    this.#seen = seen;
    this.#count();
    if (address().tab === "dead" && this.#limit === SHOWN && !inUse(this.#list)) this.#read();
  }

  /** Show what the address names. */
  visit(parameters) {
    const filters = this.#form.of(parameters);
    if (JSON.stringify(filters) !== JSON.stringify(this.#filters)) this.#reload(filters);
    this.#open(parameters.open);
  }

  get #selected() {
    const places = [...this.#list.querySelectorAll(":checked")].map(({ name }) => name);
    return this.#letters.filter((one) => places.includes(placeOf(one)));
  }

  get #discarded() {
    return this.#filters?.discarded === "true";
  }

  #open(open) {
    const panel = byId("letter");
    pointRows(this.#list, open);
    if (!open) return close(panel, this.#list);
    const letter = this.#letters.find((one) => placeOf(one) === open);
    if (panel.dataset.open === open && !panel.hidden) return;
    panel.dataset.open = letter ? open : "";
    fill(panel, `Dead letter ${open.replace("-", " · ")}`, ...(letter ? partsOf(letter) : [element("p", { class: "muted" }, "It is not in the list: show older ones, or all.")]));
    if (letter) showChanges(letter, panel).catch(() => {}); // the letter itself is shown anyway
  }

  /** Count all letters for the head, and the matching ones for the buttons. */
  #count() {
    const filters = this.#filters;
    const reasons = (only) => get("consumers/dead-letters/reasons", only);
    const read = async () => [await reasons(), filters ? await reasons(filters) : null];
    const show = ([all, matching]) => {
      this.#showCount(all);
      if (filters !== this.#filters) return; // the filter has changed meanwhile
      this.#matching = this.#discarded ? matching.letters : (matching ?? all).redrivable;
      this.#offer();
    };
    return look({ name: "count of dead letters", read, show, lose: () => (this.#seen = null) });
  }

  #showCount({ letters, redrivable, reasons, more }) {
    const tag = byId("dead-count");
    say(tag, count(redrivable) + (more ? "+" : ""));
    tag.title = `${count(redrivable)} of the newest ${count(letters)} can be sent back`;
    tag.classList.toggle("some", redrivable > 0);
    const make = (one) => element("li", {}, inside("", element("b", {}, words(one.error_type)), " ", element("span")));
    arrange(byId("reasons"), reasons, (one) => one.error_type ?? "", make, ({ firstElementChild: link }, one) => {
      const reason = `${className(one.error_type ?? "")}:`;
      link.setAttribute("href", addressOf("dead", { reason }));
      link.ariaCurrent = this.#filters?.reason === reason ? "true" : null;
      const open = one.redrivable < one.letters ? `, ${count(one.redrivable)} to send back` : "";
      say(link.lastElementChild, `${count(one.letters)}${open}, since ${time(one.oldest)}`);
    });
  }

  async #reload(filters) {
    this.#filters = filters;
    this.#limit = SHOWN;
    this.#matching = null;
    say(this.#said, "");
    await Promise.all([this.#read(), this.#count()]);
  }

  #read() {
    const filters = this.#filters;
    const read = () => get("consumers/dead-letters", { limit: this.#limit, ...filters });
    const show = ({ dead_letters: letters, next }) => {
      if (filters !== this.#filters) return; // the filter has changed meanwhile
      this.#letters = letters;
      this.#older.hidden = next === null || this.#limit === MAX_LETTERS;
      this.#show();
    };
    return look({ name: "dead letters", read, show, lose: () => (this.#seen = null) }); // the next status reads it again
  }

  #show() {
    arrange(this.#list, this.#letters, (one) => `${placeOf(one)} ${stateOf(one)}`, (one) => this.#row(one));
    this.#offer();
    this.#open(address().tab === "dead" ? address().open : "");
    if (this.#letters.length === 0) say(this.#said, this.#said.textContent || NONE);
    else if (this.#said.textContent === NONE) say(this.#said, "");
  }

  /** Write on each button what it acts on: the selected letters or all that match; disable it without any. */
  #offer() {
    const some = this.#selected.length;
    const all = this.#filters ? "all that match" : "all";
    for (const one of this.#list.querySelectorAll("button")) turn(one, this.#gone ? GONE : "");
    for (const [name, { verb }] of Object.entries(ACTIONS)) {
      byId(name).hidden = (name === "restore") !== this.#discarded;
      say(byId(name), `${verb} ${some > 0 ? `the selected (${some})` : `${all} (${count(this.#matching)})`} …`);
      turn(byId(name), this.#gone ? GONE : some === 0 && this.#matching === 0 ? `There is none to ${verb.toLowerCase()}.` : "");
    }
  }

  #row(letter) {
    const { origin } = letter;
    const label = `${letter.partition} · ${letter.offset}`;
    const box = element("input", { type: "checkbox", name: placeOf(letter), "aria-label": `Select ${label}` });
    const name = this.#discarded ? "restore" : "redrive";
    const { verb } = ACTIONS[name];
    const act = button(verb, () => this.#act(name, [letter]), { "data-role": "operate", "aria-label": `${verb} ${label}` });
    const free = this.#discarded ? letter.discarded : letter.redrivable && !letter.redriven;
    return openingRow(
      letter,
      cell("", free && box),
      "time",
      cell("reason", ...reasonOf(letter), " ", maskedSign(letter)),
      cell("from", origin.offset === null ? (origin.topic ?? UNKNOWN) : originLink(origin, `${origin.partition} · ${count(origin.offset)}`)),
      cell("code wide", contentText(letter.key)),
      cell("wide tries", triesOf(letter)),
      cell("letter-state", stateOf(letter), free && act),
    );
  }

  /** Apply an action to the chosen letters, or to all that match; ask first, with the number, unless it is harmless. */
  #act(name, chosen) {
    const { verb, done, will } = ACTIONS[name];
    const path = `consumers/dead-letters/${name}`;
    const { discarded: _, ...filters } = this.#filters ?? {};
    const all = chosen.length === 0;
    const letters = [];
    return report(this.#said, "One moment …", async () => {
      const isMore = all || (name === "restore" && chosen.length > 1);
      const counted = isMore ? await post(path, { limit: MAX_LETTERS }, { ...filters, dry_run: true }) : null;
      const matching = counted?.[`would_${name}`];
      const number = all ? matching : chosen.length;
      const atOnce = all || (matching === number && !counted.more); // then the chosen are all that match
      if (number === 0) return `There is none to ${verb.toLowerCase()}.`;
      const asks = all || name === "discard" || (name === "redrive" && number > 1);
      const only = Object.entries(all ? filters : {}).map(([filter, value]) => `${filter} ${value.replace(/:$/, "")}`);
      const which = `${plural(number, "dead letter", "dead letters")} of ${stream}${only.length > 0 ? ` (${only.join(", ")})` : ""}`;
      const question = `${which} will be ${will}.${this.#leftOut(number, counted)}`;
      if (asks && !(await confirmed(question, `${verb} ${count(number)}`))) return "Nothing was changed.";
      const bodies = atOnce ? [{ limit: number }] : chosen.map(({ partition, offset }) => ({ partition, offset }));
      try {
        for (const body of bodies) letters.push(...(await post(path, body, atOnce ? filters : {})).dead_letters);
      } finally {
        await this.#readAgain(chosen);
      }
      const next = { redrive: inside(addressOf("records"), "Watch them arrive"), discard: button("Undo", () => this.#act("restore", letters)) };
      return element("span", {}, `${plural(letters.length, "was", "were")} ${done}. `, letters.length > 0 && next[name]);
    });
  }

  /** Say how many matching letters an action leaves out. */
  #leftOut(number, counted) {
    if (counted?.more) return " There are more: repeat this for them.";
    const held = counted === null ? 0 : this.#matching - number;
    return held > 0 ? ` ${count(held)} more can only be sent back one by one: they came back too often, or are too large.` : "";
  }

  /** Read the letters again after an action; keep the keyboard focus where the button was. */
  async #readAgain([first]) {
    this.#seen = null; // counts them again
    await this.#read();
    if (first && document.activeElement === document.body) this.#list.querySelector(`[data-open="${placeOf(first)}"]`)?.focus();
  }
}

const className = (type) => type.split(".").at(-1);

/** The name of an error in words: `msgspec.ValidationError` becomes "Validation error". */
const words = (type) =>
  className(type ?? UNKNOWN).replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase().replace(/^./, (first) => first.toUpperCase());

const triesOf = ({ tries, rounds }) =>
  (tries === null ? "" : plural(tries, "try", "tries")) + (rounds > 0 ? `, back ${plural(rounds, "time", "times")}` : "");

function stateOf({ redriven, discarded, held, redrivable, group }) {
  if (redriven) return "sent back";
  if (discarded) return "discarded ";
  if (!redrivable) return group === null ? "of another topic" : `of ${group}`;
  return held ? "held: only by itself " : "";
}

const originLink = (origin, text) => inside(addressOf("records", { open: placeOf(origin) }), text);
const reasonOf = ({ error_type: type, error }) => [element("b", {}, words(type)), error ? `: ${error}` : ""];

function partsOf(letter) {
  const { origin } = letter;
  const key = letter.key === null ? null : contentText(letter.key);
  const place = `${origin.topic ?? UNKNOWN}, partition ${origin.partition ?? UNKNOWN}, offset ${origin.offset ?? UNKNOWN}`;
  const from = element("span", {}, origin.offset === null ? place : originLink(origin, place));
  if (origin.timestamp !== null) from.append(", ", timeElement(origin.timestamp));
  return [
    element("p", { class: "trouble" }, ...reasonOf(letter)),
    actions(
      contentText(letter.value),
      key,
      curlOf("consumers/dead-letters", { key, partition: letter.partition, limit: 10 }),
      key !== null && key !== MASK && inside(addressOf("dead", { key }), "Dead letters of this key"),
      key !== null && key !== MASK && inside(addressOf("records", { key }), "Records of this key"),
      maskedSign(letter),
    ),
    facts([
      ["dead letter", element("span", {}, `partition ${letter.partition}, offset ${letter.offset}, `, timeElement(letter.timestamp))],
      ["came from", from],
      ["group", letter.group ?? UNKNOWN],
      ["verdict", letter.verdict ?? UNKNOWN],
      ["tries", triesOf(letter) || UNKNOWN],
      ["key", key ?? "null"],
    ]),
    letter.stack && element("details", {}, element("summary", {}, "Stack of the handler"), block([letter.stack], "Stack")),
    ...contents(letter.value, letter.headers, letter.error),
    element("div", { class: "changes" }),
  ];
}

/** Show what changed since the previous dead letter of the same key, if there is one. */
async function showChanges(letter, panel) {
  if (letter.key?.text == null || letter.key.text === MASK) return;
  const place = panel.querySelector(".changes");
  const { dead_letters: letters } = await get("consumers/dead-letters", { key: letter.key.text, limit: SHOWN });
  const before = letters[letters.findIndex((one) => placeOf(one) === placeOf(letter)) + 1];
  if (!before || placeOf(before) === placeOf(letters[0])) return;
  const [was, is] = [before, letter].map(({ value }) => contentBlock(value).textContent.split("\n"));
  const only = (tag, lines, others) => lines.filter((line) => !others.includes(line)).map((line) => element(tag, {}, `${line.trim()}\n`));
  const changes = [...only("del", was, is), ...only("ins", is, was)];
  place.replaceChildren(
    element("h4", {}, "The dead letter of this key before"),
    element("p", {}, inside(addressOf("dead", { key: letter.key.text, open: placeOf(before) }), timeElement(before.timestamp)), ": ", ...reasonOf(before)),
    changes.length > 0 ? block(changes, "Changes of the value") : element("p", { class: "muted" }, "The value is the same."),
  );
}
