/** The filters of a list: the form that sets them, and the address that names them. */

import { addressOf, go } from "./address.js";
import { localTime, onSubmit, rfc3339 } from "./dom.js";

const isTime = ({ type }) => type === "datetime-local";

export class Filters {
  #fields;

  /** Have a form lead to the address of a tab with its filters, and a button to the one without. */
  constructor(form, tab, none) {
    this.#fields = [...form.elements].filter(({ name }) => name);
    const asked = () => this.#fields.map((field) => [field.name, isTime(field) ? rfc3339(field.value) : field.value]);
    onSubmit(form, () => go(addressOf(tab, Object.fromEntries(asked()))));
    none.addEventListener("click", () => go(addressOf(tab)));
    this.none = none;
  }

  /** Show the filters of an address; return them, and null without any. */
  of(parameters) {
    for (const field of this.#fields) {
      const value = parameters[field.name] ?? "";
      field.value = isTime(field) ? localTime(value) : value;
    }
    const given = this.#fields.map(({ name }) => [name, parameters[name]]).filter(([, value]) => value);
    this.none.hidden = given.length === 0;
    return given.length === 0 ? null : Object.fromEntries(given);
  }
}
