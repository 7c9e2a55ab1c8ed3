/** Producing records: one from a form that the stream's JSON schema makes, or many made-up ones. */

import { addressOf } from "./address.js";
import { get, post } from "./api.js";
import { textOf } from "./content.js";
import { byId, element, inside, onSubmit, plural, report, say } from "./dom.js";
import { stream } from "./streams.js";

const PAUSE = 2_000; // ms between two looks whether the producer answers
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-/;
const producer = document.querySelector("meta[name=producer-url]").content;

export class Produce {
  #dialog = byId("produce");
  #form = byId("produce").querySelector("form");
  #said = byId("produce-said");
  #properties = null; // of the schema; null for a stream whose values are of several types
  #required = [];

  /** Wire the buttons, and look now and again whether the producer answers. */
  async run() {
    if (producer === "") return;
    const create = byId("create");
    onSubmit(create, ({ number }) =>
      report(create.querySelector("output"), "Creating …", async () => created(await post(`${producer}/producers/${stream}/generate?number=${number}`))),
    );
    byId("new-record").addEventListener("click", () => this.open());
    byId("produce-close").addEventListener("click", () => this.#dialog.close());
    this.#said.addEventListener("click", ({ target }) => target.closest("a") && this.#dialog.close());
    this.#form.addEventListener("input", ({ target }) => this.#check(target));
    onSubmit(this.#form, () => this.#send());
    say(byId("no-producer"), `No records can be created from here: ${producer} does not answer.`);
    for (;;) {
      if (!document.hidden) {
        const there = await answers();
        for (const name of ["create", "new-record"]) byId(name).hidden = !there;
        byId("no-producer").hidden = there;
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }

  /** Open the form, with the example of the schema or a given value in it. */
  async open(value) {
    say(this.#said, "");
    this.#dialog.showModal();
    await report(this.#said, "Reading the schema …", async () => {
      this.#take(await get("asyncapi.json", { stream: "" }));
      this.#fill(value ?? this.#example());
      return "";
    });
  }

  #take({ channels, components: { schemas, messages } }) {
    const names = Object.keys(channels[stream].messages);
    const schema = schemas[messages[names[0]].payload.$ref?.split("/").at(-1)];
    this.#properties = names.length === 1 && schema?.type === "object" ? schema.properties : null;
    this.#required = schema?.required ?? [];
  }

  #example() {
    const examples = Object.entries(this.#properties ?? {}).map(([name, schema]) => [name, exampleOf(schema)]);
    return Object.fromEntries(examples.filter(([name, value]) => value !== undefined || this.#required.includes(name)));
  }

  #fill(value) {
    const fields = Object.entries(this.#properties ?? {}).map(([name, schema]) => field(name, schema, value[name], this.#required.includes(name)));
    byId("produce-fields").replaceChildren(...fields);
    byId("produce-json").hidden = this.#properties !== null;
    this.#form.elements.json.value = JSON.stringify(value, null, 2);
    for (const input of this.#form.elements) this.#check(input);
  }

  /** Say what is wrong with a field while it is typed. */
  #check(input) {
    if (input.dataset.json !== undefined || input.name === "json") {
      input.setCustomValidity(input.value === "" || isJson(input.value) ? "" : "This is no JSON.");
    }
    const line = input.parentElement.querySelector(".wrong");
    if (line) say(line, input.validationMessage);
  }

  /** The value of the form; an optional field that is empty is left out. */
  #value() {
    const value = {};
    for (const input of byId("produce-fields").querySelectorAll("[data-field]")) {
      const { field: name, json } = input.dataset;
      if (input.type === "checkbox") value[name] = input.checked;
      else if (input.value !== "" || this.#required.includes(name)) value[name] = json === undefined ? input.value : JSON.parse(input.value);
    }
    return value;
  }

  #send() {
    return report(this.#said, "Sending …", async () => {
      const value = this.#properties === null ? this.#form.elements.json.value : this.#value();
      const answer = await post(`${producer}/producers/${stream}`, value).catch(explained);
      const [receipt] = answer.receipts;
      if (receipt.error) throw new Error(receipt.error);
      const { id, partition, offset } = receipt;
      return element("span", {}, `${id} was written to `, inside(addressOf("records", { open: `${partition}-${offset}` }), `partition ${partition}, offset ${offset}`), ".");
    });
  }
}

/** Name the places in the value that the producer refuses. */
function explained(failure) {
  const errors = (failure.problem?.errors ?? []).map((one) => [one.path ?? one.pointer ?? one.name, one.detail ?? one.message].filter(Boolean).join(": "));
  throw errors.length === 0 ? failure : new Error(errors.join("; "));
}

function exampleOf(schema) {
  const example = schema.examples?.[0] ?? schema.default ?? schema.enum?.[0] ?? schema.const;
  if (typeof example === "string" && UUID.test(example)) return crypto.randomUUID?.() ?? example; // none without TLS
  if (example !== undefined) return example;
  return { string: "", integer: schema.minimum ?? 0, number: schema.minimum ?? 0, boolean: false, array: [], object: {} }[schema.type];
}

/** A field of the form: what it takes follows from its schema; what no input can take is written as JSON. */
function field(name, schema, value, required) {
  const limits = { min: schema.minimum, max: schema.maximum, minlength: schema.minLength, maxlength: schema.maxLength, pattern: schema.pattern };
  const given = Object.fromEntries(Object.entries(limits).filter(([, limit]) => limit !== undefined));
  const { type } = schema;
  if (required && type === "string" && schema.minLength > 0) given.required = "";
  if (required && !["string", "boolean"].includes(type)) given.required = "";
  const input = inputFor(schema, given);
  if (type !== "string") input.dataset.json = "";
  input.dataset.field = name;
  input.checked = value === true;
  if (type !== "boolean") input.value = value === undefined ? "" : type === "string" ? value : JSON.stringify(value);
  const hint = schema.description && element("small", { class: "muted" }, schema.description);
  return element("label", {}, name, input, hint, element("small", { class: "trouble wrong", "aria-live": "polite" }));
}

function inputFor({ enum: choices, type }, given) {
  if (choices) return element("select", {}, ...choices.map((one) => element("option", { value: textOf(one) }, textOf(one))));
  if (type === "string") return element("input", { type: "text", autocomplete: "off", ...given });
  if (type === "boolean") return element("input", { type: "checkbox" });
  if (type === "integer") return element("input", { type: "number", step: "1", ...given });
  if (type === "number") return element("input", { type: "number", step: "any", ...given });
  return element("textarea", { rows: "3", spellcheck: "false", ...given });
}

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

/** The answer is the records, or receipts of which some have an error (207). */
function created(made) {
  if (Array.isArray(made)) return `${plural(made.length, "was", "were")} created.`;
  const failed = made.receipts.filter((receipt) => receipt.error);
  throw new Error(`${failed.length} of ${made.receipts.length} were not confirmed: ${failed[0].error}`);
}

const answers = () => get(`${producer}/livez`).then(() => true, () => false);
