/** Producing records: one by a form made from the stream's JSON schema, or many made-up ones. */

import { addressOf } from "./address.js";
import { get, parsed, post } from "./api.js";
import { textOf } from "./content.js";
import { byId, confirmed, copyOf, element, inside, onSubmit, plural, report, say } from "./dom.js";
import { poll } from "./looks.js";
import { placeOf } from "./record.js";
import { producer, stream } from "./streams.js";

const PAUSE_MS = 2_000; // between two checks whether the producer answers
const records = `${producer}/producers/${stream}`;
const LIMITS = { minimum: "min", maximum: "max", minLength: "minlength", maxLength: "maxlength", pattern: "pattern" };

export class Produce {
  #form = byId("produce-form");
  #said = byId("produce-said");
  #raw = byId("produce-raw");
  #text = byId("produce-text");
  #properties = null; // of the schema; null when the stream has several types
  #required = [];
  #sent = null; // the value that was sent last

  run() {
    if (producer === "") return;
    const create = byId("create");
    const make = (number) => post(`${records}/generate?number=${number}`).then(created);
    const asked = (number) => confirmed(`${plural(number, "invented record", "invented records")} will be written to ${stream}, and handled.`, "Create");
    onSubmit(create, ({ number }) => report(create.querySelector("output"), "Creating …", async () => ((await asked(Number(number))) ? make(number) : "Nothing was created.")));
    byId("new-record").addEventListener("click", () => this.open());
    byId("produce").addEventListener("close", () => (byId("produce-fields").replaceChildren(), (this.#text.value = "")));
    this.#said.addEventListener("click", ({ target }) => target.closest("a") && byId("produce").close());
    this.#form.addEventListener("input", ({ target }) => this.#check(target));
    this.#raw.addEventListener("change", ({ target }) => this.#switch(target.checked));
    onSubmit(this.#form, () => this.#send());
    poll(PAUSE_MS, async () => {
      const there = await get(`${producer}/livez`).then(() => true, () => false);
      for (const name of ["create", "new-record"]) byId(name).hidden = !there;
      byId("no-producer").hidden = there;
    });
  }

  /** Open the form with the given value, or with one that the producer makes up. */
  async open(value) {
    say(byId("produce-title"), value ? "Send again" : "New record");
    say(byId("send"), "Send");
    this.#sent = null;
    byId("produce").showModal();
    await report(this.#said, "One moment …", async () => {
      this.#take(await get("asyncapi.json", { stream: "" }));
      this.#raw.checked = this.#properties === null;
      this.#show(value ?? (await get(`${records}/sample`).catch(() => ({}))));
      return "";
    });
  }

  #take({ channels, components: { schemas, messages } }) {
    const names = Object.keys(channels[stream].messages);
    const schema = schemas[messages[names[0]].payload.$ref?.split("/").at(-1)];
    this.#properties = names.length === 1 && schema?.type === "object" ? schema.properties : null;
    this.#required = schema?.required ?? [];
    this.#raw.parentElement.hidden = this.#properties === null;
  }

  #show(value) {
    const raw = this.#raw.checked;
    const field = ([name, schema]) => fieldOf(name, schema, value[name], this.#required.includes(name));
    byId("produce-fields").replaceChildren(...(raw ? [] : Object.entries(this.#properties).map(field)));
    byId("produce-json").hidden = !raw;
    this.#text.value = raw ? JSON.stringify(value, null, 2) : "";
    for (const input of this.#form.elements) this.#check(input);
  }

  /** Switch between fields and raw JSON; a value that does not fit the fields stays raw. */
  #switch(raw) {
    const value = raw ? this.#value() : parsed(this.#text.value);
    const fits = value !== undefined && (raw || Object.keys(value ?? {}).every((name) => name in this.#properties));
    this.#raw.checked = raw || !fits;
    if (fits) this.#show(value);
    say(this.#said, fits ? "" : "The form has no fields for this.");
  }

  #check(input) {
    input.setCustomValidity("");
    if ("json" in input.dataset && input.value) parsed(input.value, undefined, ({ message }) => input.setCustomValidity(`Write valid JSON: ${message}`));
    const line = input.parentElement.querySelector(".wrong");
    if (line) say(line, input.validationMessage);
  }

  /** The value of the fields; empty optional ones are omitted, and invalid JSON is null. */
  #value() {
    const isGiven = ({ value, dataset }) => value !== "" || this.#required.includes(dataset.field);
    const inputs = [...byId("produce-fields").querySelectorAll("[data-field]")].filter(isGiven);
    const valueOf = (input) => (input.type === "checkbox" ? input.checked : "json" in input.dataset ? (parsed(input.value) ?? null) : input.value);
    return Object.fromEntries(inputs.map((input) => [input.dataset.field, valueOf(input)]));
  }

  async #send() {
    const value = this.#raw.checked ? this.#text.value : JSON.stringify(this.#value());
    if (value === this.#sent && !(await confirmed("This very record was just sent.", "Send it once more"))) return;
    await report(this.#said, "Sending …", async () => {
      const { receipts: [receipt] } = await post(records, value);
      if (receipt.error) throw new Error(receipt.error);
      this.#sent = value;
      say(byId("send"), "Send another");
      const link = inside(addressOf("records", { open: placeOf(receipt) }), `partition ${receipt.partition}, offset ${receipt.offset}`);
      return element("span", {}, `${receipt.id} was written to `, link, ".");
    });
  }
}

function fieldOf(name, schema, value, required) {
  const { type, enum: choices } = schema;
  const template = byId(`input-${type}`) ?? byId("input-json");
  const options = choices?.map((one) => element("option", { value: JSON.stringify(one) }, textOf(one)));
  const input = options ? element("select", {}, ...options) : copyOf(template);
  for (const [rule, limit] of Object.entries(LIMITS)) if (rule in schema) input.setAttribute(limit, schema[rule]);
  const isText = type === "string" && !choices;
  input.dataset.field = name;
  input.required = required && type !== "boolean" && (type !== "string" || schema.minLength > 0);
  if (!isText && type !== "boolean") input.dataset.json = "";
  input.checked = value === true;
  if (type !== "boolean") input.value = value === undefined ? "" : isText ? value : JSON.stringify(value);
  return element("label", {}, name, input, schema.description && element("small", { class: "muted" }, schema.description), element("small", { class: "trouble wrong", "aria-live": "polite" }));
}

const created = ({ length, delivered, receipts: of }) =>
  of ? `${delivered} of ${of.length} were created: ${of.find(({ error }) => error).error}` : `${plural(length, "was", "were")} created.`;
