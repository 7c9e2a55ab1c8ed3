/** Dead letters: why records were refused, how many there are, and the actions on them. */

import { address, addressOf, Filters } from "./address.js";
import { curlOf, get, post } from "./api.js";
import { block, contentBlock, contentText, facts, keyContent, maskedSign, nameOf, reasonOf, UNKNOWN } from "./content.js";
import { arrange, button, byId, cell, confirmed, count, element, inside, inUse, onExport, plural, report, say, timeElement, turn } from "./dom.js";
import { look, poll } from "./looks.js";
import { actions, close, contents, fill, keyText, leftOf, likeOf, openingRow, placeOf, pointRows } from "./record.js";
import { showDead, stream } from "./streams.js";

const SHOWN = 50;
const MAX_LETTERS = 1_000; // dead letters per call at most
const FATE_MS = 2_000; // between two looks at a letter that was sent back
const CLOCKS_DIFFER_MS = 60_000; // the browser's and those of Kafka
const REREAD_MS = 15_000; // reads them again, because other instances write some too
const ACTIONS = ["redrive", "discard", "restore"];
const CAUSES = { poison: "the handler failed for it", refused: "it cannot be decoded, or the handler rejected it" };
const wordsOf = (name) => byId(name).dataset;

export class DeadLetters {
  #list = byId("dead-list");
  #said = byId("dead-said");
  #form = new Filters(byId("letter-filter"), "dead", byId("unfilter"));
  #filters; // null for no filter, undefined before the first read
  #listed; // the filters of what is listed
  #letters = [];
  #limit = SHOWN;
  #matching = null; // how many matching letters the buttons can act on
  #seen = null; // the status that the last read was for
  #off = ""; // why nothing can be done now

  constructor() {
    for (const name of ACTIONS) byId(name).addEventListener("click", () => this.#act(name, this.#selected));
    this.#list.addEventListener("change", () => this.#offer());
    byId("purge").addEventListener("click", () => this.#purge(this.#doomed, this.#form.words()));
    byId("reasons").addEventListener("click", ({ target }) => target.closest("a") && byId("redrive").focus());
    byId("reload").addEventListener("click", () => this.#reload(this.#filters && { ...this.#filters }));
    onExport("export-letters", this.#list, `${stream}-dead-letters.ndjson`, this.#said, () => this.#letters.map((one) => `${JSON.stringify(one)}\n`));
    byId("older").addEventListener("click", () => this.#read(true, Math.min(MAX_LETTERS, this.#limit + SHOWN)));
  }

  /** Read the list again after this instance wrote some, and periodically; not while older ones are shown. */
  refresh(status, off) {
    this.#off = off;
    this.#offer();
    const seen = status && `${status.started_at} ${status.dead_lettered_count} ${Math.floor(Date.now() / REREAD_MS)}`;
    if (status === null || seen === this.#seen) return;
    this.#seen = seen;
    this.#read(address().tab === "dead" && this.#limit === SHOWN && !inUse(this.#list));
  }

  visit(parameters) {
    const filters = this.#form.of(parameters);
    if (JSON.stringify(filters) !== JSON.stringify(this.#filters)) this.#reload(filters);
    this.#open(parameters.open);
  }

  get #selected() {
    return this.#letters.filter((one) => this.#list.querySelector(`[name="${placeOf(one)}"]:checked`));
  }

  /** What can be purged: the letters of a key, or those before a time; undefined with other filters. */
  get #doomed() {
    const { key, to } = this.#filters ?? {};
    return { key: { key }, to: { before: to } }[Object.keys(this.#filters ?? {}).join()];
  }

  #open(open) {
    const panel = byId("letter");
    pointRows(this.#list, open);
    if (!open) return close(panel, this.#list);
    const letter = this.#letters.find((one) => placeOf(one) === open);
    const shown = letter ? `${open} ${stateOf(letter)}` : "";
    if (panel.dataset.shown === shown && !panel.hidden) return;
    Object.assign(panel.dataset, { open, shown });
    const missing = element("p", { class: "muted" }, "It is not in the list: show older ones, or all.");
    fill(panel, "Dead letter", ...(letter ? partsOf(letter, this.#buttonsOf(letter)) : [missing]));
  }

  #read(withList = true, limit = this.#limit) {
    this.#limit = limit;
    const filters = this.#filters;
    const reasons = (only) => get("consumers/dead-letters/reasons", only);
    const counts = async () => [await reasons(), filters && (await reasons(filters))];
    const read = () => Promise.all([counts(), withList && get("consumers/dead-letters", { limit: this.#limit, ...filters })]);
    const show = ([[all, matching], list]) => {
      showDead(stream, all);
      this.#showReasons(all.reasons);
      if (filters !== this.#filters) return; // the filter has changed meanwhile
      say(byId("matching"), ...(matching && filters.discarded !== "true" ? ["These match: ", ...leftOf(matching), "."] : []));
      this.#matching = filters?.discarded === "true" ? matching.letters : (matching ?? all).redrivable;
      if (list) this.#show(list, filters);
      this.#offer();
    };
    const lose = ({ message }) => {
      this.#seen = null; // the next status reads it again
      if (JSON.stringify(filters) !== JSON.stringify(this.#listed)) this.#list.replaceChildren(); // others found it
      say(byId("no-letters"), `The dead letters cannot be read: ${message}`);
    };
    return look({ name: "dead letters", read, show, lose });
  }

  #showReasons(reasons) {
    byId("known-reasons").replaceChildren(...reasons.map((one) => element("option", { value: nameOf(one) })));
    const make = (one) => element("li", {}, inside("", element("b", {}, nameOf(one)), " ", element("span")));
    arrange(byId("reasons"), reasons, (one) => one.error_type ?? "", make, ({ firstElementChild: link }, one) => {
      const reason = `${nameOf(one)}:`;
      link.setAttribute("href", addressOf("dead", { reason }));
      link.ariaCurrent = this.#filters?.reason === reason ? "true" : null;
      say(link.lastElementChild, ...leftOf(one));
    });
  }

  #reload(filters) {
    this.#filters = filters;
    [this.#limit, this.#matching] = [SHOWN, null];
    this.#offer();
    for (const id of ["dead-said", "matching"]) say(byId(id), "");
    say(byId("no-letters"), "…");
    return this.#read();
  }

  #show({ dead_letters: letters, next, notes }, filters) {
    [this.#letters, this.#listed] = [letters, filters];
    say(byId("dead-notes"), notes.join("; "));
    byId("older").hidden = next === null || this.#limit === MAX_LETTERS;
    arrange(this.#list, letters, (one) => `${placeOf(one)} ${stateOf(one)}`, (one) => this.#row(one));
    say(byId("no-letters"), "None.", !byId("refused").hidden && " What was refused waits on the topic, and is no dead letter yet: see Overview.");
    this.#open(address().tab === "dead" ? address().open : "");
  }

  /** Write on each button what it acts on: the selected letters or all that match; disable it without any. */
  #offer() {
    const some = this.#selected.length;
    const all = (this.#filters ? "all that match" : "all") + (this.#matching === null ? "" : ` (${count(this.#matching)})`);
    for (const one of document.querySelectorAll("#dead .split [data-role]")) turn(one, this.#off);
    turn(byId("purge"), this.#off || (this.#doomed ? "" : wordsOf("purge").needs));
    for (const name of ACTIONS) {
      const { verb } = wordsOf(name);
      byId(name).hidden = (name === "restore") !== (this.#filters?.discarded === "true");
      say(byId(name), `${verb} ${some > 0 ? `the selected (${some})` : all} …`);
      turn(byId(name), this.#off || (some === 0 && this.#matching === 0 ? `There is none to ${verb.toLowerCase()}.` : ""));
    }
  }

  #row(letter) {
    const { origin } = letter;
    const [act] = this.#buttonsOf(letter);
    const box = element("input", { type: "checkbox", name: placeOf(letter), "aria-label": `Select ${placeIn(letter)}` });
    return openingRow(
      letter,
      cell("", act && box), "time",
      cell("reason", ...reasonOf(letter), " ", maskedSign(letter)),
      cell("from", origin.offset === null ? (origin.topic ?? UNKNOWN) : originLink(origin, placeIn(origin))),
      cell("code wide", keyContent(letter)), cell("wide tries", triesOf(letter)), cell("letter-state", stateOf(letter), " ", act),
    );
  }

  #buttonsOf(letter) {
    const names = letter.discarded ? ["restore"] : letter.redrivable ? ["redrive", "discard"] : [];
    const attributes = ({ verb }) => ({ "data-role": "operate", "aria-label": `${verb} ${placeIn(letter)}` });
    return names.map((name) => button(wordsOf(name).verb, () => this.#act(name, [letter]), attributes(wordsOf(name))));
  }

  /** Apply an action to the chosen letters, or to all that match; ask first, with the number, unless it is harmless. */
  #act(name, chosen, words = chosen.length === 0 ? this.#form.words() : []) {
    const { verb, done, will } = wordsOf(name);
    const { discarded: _, ...filters } = this.#filters ?? {};
    const all = chosen.length === 0;
    const letters = [];
    return report(this.#said, "One moment …", async () => {
      const counts = all || (name === "restore" && chosen.length > 1);
      const counted = counts ? await apply(name, { limit: MAX_LETTERS }, { ...filters, dry_run: true }) : null;
      const matching = counted?.[`would_${name}`];
      const number = all ? matching : chosen.length;
      const atOnce = all || (matching === number && !counted.more); // then the chosen are all that match
      if (number === 0) return `There is none to ${verb.toLowerCase()}.`;
      const asks = all || name === "discard" || (name === "redrive" && number > 1);
      const held = counted === null ? 0 : this.#matching - number;
      const others = held > 0 ? ` ${count(held)} more can only be sent back one by one: they came back too often, or are too large.` : "";
      const question = [...lettersOf(number, words), ` will be ${will}.${counted?.more ? " There are more: repeat this for them." : others}`];
      if (asks && !(await confirmed(question, `${verb} ${count(number)}`))) return "Nothing was changed.";
      const from = new Date(Date.now() - CLOCKS_DIFFER_MS).toISOString();
      const bodies = atOnce ? [{ limit: number }] : chosen.map(({ partition, offset }) => ({ partition, offset }));
      try {
        for (const body of bodies) letters.push(...(await apply(name, body, atOnce ? filters : {})).dead_letters);
      } finally {
        await this.#read();
        const lost = document.activeElement === document.body && chosen[0]; // the focus was on its button
        if (lost) this.#list.querySelector(`[data-open="${placeOf(lost)}"]`)?.focus();
      }
      const next = { redrive: () => fatesOf(letters, from), discard: () => button("Undo", () => this.#act("restore", letters)) };
      return [`${plural(letters.length, "was", "were")} ${done}. `, letters.length > 0 && next[name]?.()];
    });
  }

  /** Delete letters for good, in several calls where they are many; ask first, with the number. */
  #purge(doomed, words) {
    const purge = async (parameters, after) => {
      const { would_purge: would, purged, next } = await post("consumers/dead-letters/purge", undefined, { ...doomed, ...parameters, after });
      return (would ?? purged) + (next === null ? 0 : await purge(parameters, next));
    };
    return report(this.#said, "Counting …", async () => {
      const number = await purge({ dry_run: true });
      if (number === 0) return "There is none to delete.";
      if (!(await confirmed([...lettersOf(number, words), ` will be ${wordsOf("purge").will}.`], `Delete ${count(number)} for good`))) return "Nothing was changed.";
      return purge().then((gone) => `${plural(gone, "was", "were")} deleted for good.`).finally(() => this.#read());
    });
  }
}

const lettersOf = (number, words) => [`${plural(number, "dead letter", "dead letters")} of ${stream}`, ...(words.length > 0 ? [" (", ...words, ")"] : [])];
const apply = (name, body, like) => post(`consumers/dead-letters/${name}`, body, like).then((answer) => ((answer[`would_${name}`] ?? answer.dead_letters.length) === 0 && answer.more ? apply(name, body, like) : answer)); // none in its time: the next call goes on
const placeIn = ({ partition, offset }) => `partition ${partition}, offset ${offset}`;
const originLink = (origin, text) => inside(addressOf("records", { open: placeOf(origin) }), text);
const triesOf = ({ tries, rounds }) => [tries && plural(tries, "try", "tries"), rounds > 0 && `came back ${plural(rounds, "time", "times")}`].filter(Boolean).join(", ");

function stateOf({ redriven, discarded, held, redrivable, group }) {
  if (redriven || discarded) return redriven ? "sent back" : "discarded";
  if (!redrivable) return group === null ? "of another topic" : `of the group ${group}`;
  return held ? "sent back only one by one" : "";
}

function partsOf(letter, buttons) {
  const { origin, partition, offset, timestamp } = letter;
  const key = keyText(letter);
  const place = `${origin.topic ?? UNKNOWN}, partition ${origin.partition ?? UNKNOWN}, offset ${origin.offset ?? UNKNOWN}`;
  const written = origin.timestamp === null ? [] : [", ", timeElement(origin.timestamp)];
  const since = { key, partition: key ? "" : origin.partition, from: timeElement(timestamp).dateTime };
  const arrival = letter.redriven && inside(addressOf("records", since), "Show its arrival");
  return [
    element("p", { class: "trouble" }, ...reasonOf(letter)),
    letter.redriven && fateOf(letter, since),
    actions(letter, contentText(letter.value), curlOf("consumers/dead-letters", { key, partition, limit: 10 }), ...buttons, arrival, likeOf(letter)),
    facts([
      ["state", stateOf(letter) || "can be sent back"],
      ["dead letter", element("span", {}, `partition ${partition}, offset ${offset}, `, timeElement(timestamp))],
      ["came from", element("span", {}, origin.offset === null ? place : originLink(origin, place), ...written)],
      ["group", letter.group ?? UNKNOWN],
      ["why", CAUSES[letter.verdict] ?? UNKNOWN],
      ["tries", triesOf(letter) || UNKNOWN],
      ["key", keyContent(letter)],
    ]),
    letter.stack && element("details", {}, element("summary", {}, "Stack of the handler"), block([letter.stack], "Stack")),
    ...contents(letter.value, letter.headers, letter.error),
    changesOf(letter),
  ];
}

/** Say what becomes of dead letters that were sent back, with a list of them, until each was consumed or failed again. */
function fatesOf(letters, from) {
  const [sum, list] = [element("span", {}, "One moment …"), element("ul", { class: "fates", "aria-live": "off" })];
  const [consumed, failed, waiting] = ["consumed", "failed again", "not consumed yet"];
  const row = ({ to, again, fate }) => element("li", {}, originLink(to, placeIn(to)), ": ", again ? inside(addressOf("dead", { key: keyText(again), open: placeOf(again) }), fate, ": ", ...reasonOf(again)) : fate);
  const read = async () => {
    const { partitions } = await get("consumers/group");
    const { dead_letters: dead } = await get("consumers/dead-letters", { from, limit: MAX_LETTERS }); // as it was after that
    const committed = Object.fromEntries(partitions.map((one) => [one.partition, one.committed]));
    const fates = letters.map(({ sent_to: to }) => {
      const again = dead.find(({ origin }) => placeOf(origin) === placeOf(to));
      return { to, again, fate: again ? failed : committed[to.partition] > to.offset ? consumed : waiting };
    });
    const number = (wanted) => fates.filter(({ fate }) => fate === wanted).length;
    say(sum, [consumed, failed, waiting].filter((fate) => fate !== waiting || number(fate) > 0).map((fate) => `${count(number(fate))} ${fate}`).join(", "), ".");
    arrange(list, fates.slice(0, SHOWN), ({ to, fate }) => `${placeOf(to)} ${fate}`, row);
    return number(waiting) > 0;
  };
  poll(FATE_MS, async () => (await read().catch(() => true)) && sum.isConnected && sum.closest(".panel[hidden]") === null);
  return element("span", {}, sum, list);
}

/** Say how a dead letter that was sent back fared; empty where its arrival is not found. */
function fateOf(letter, since) {
  const place = element("p", { class: "muted" });
  const first = JSON.stringify(letter.first_place);
  const isArrival = ({ headers }) => headers.some(({ name, value }) => name === "dead-letter-origin" && value?.text === first);
  const show = (arrival) => arrival && place.append("Sent back at ", timeElement(arrival.timestamp), ": ", fatesOf([{ sent_to: arrival }], since.from));
  get("consumers/messages", { scope: "topic", ...since, limit: MAX_LETTERS }).then(({ messages }) => show(messages.find(isArrival)), () => {});
  return place;
}

/** What changed since the previous dead letter of the same key: empty before that is read, and without one. */
function changesOf(letter) {
  const [place, key] = [element("div"), keyText(letter)];
  const show = ({ dead_letters: letters }) => {
    const before = letters[letters.findIndex((one) => placeOf(one) === placeOf(letter)) + 1];
    if (!before || placeOf(before) === placeOf(letters[0])) return;
    const [was, is] = [before, letter].map(({ value }) => contentBlock(value).textContent.split("\n"));
    const only = (tag, lines, others) => lines.filter((line) => !others.includes(line)).map((line) => element(tag, {}, `${line.trim()}\n`));
    const changes = [...only("del", was, is), ...only("ins", is, was)];
    place.append(
      element("h4", {}, "The dead letter of this key before"),
      element("p", {}, inside(addressOf("dead", { key, open: placeOf(before) }), timeElement(before.timestamp)), ": ", ...reasonOf(before)),
      changes.length > 0 ? block(changes, "Changes of the value") : element("p", { class: "muted" }, "The value is the same."),
    );
  };
  if (key) get("consumers/dead-letters", { key, limit: SHOWN }).then(show, () => {}); // the letter itself is shown anyway
  return place;
}
