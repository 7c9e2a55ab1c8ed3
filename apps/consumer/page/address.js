/** What the page shows, as its address names it: stream, tab, filters and open record. A link can be sent, and Back works. */

import { localTime, onSubmit, rfc3339, say, timeElement } from "./dom.js";

export const address = () => Object.fromEntries(new URLSearchParams(location.search));
export const addressWith = (changes) => written({ ...address(), ...changes });

/** Return the address of a tab with its filters, without those of other tabs. */
export const addressOf = (tab, filters = {}) => written({ stream: address().stream, tab, ...filters });

function written(parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value != null);
  return given.length === 0 ? location.pathname : `?${new URLSearchParams(given)}`;
}

/** Go to another address of the page; the current one is left as it is. */
export function go(to) {
  if (new URL(to, location.href).href !== location.href) history.pushState(null, "", to);
  window.dispatchEvent(new PopStateEvent("popstate"));
}

export const onAddress = (listener) => window.addEventListener("popstate", listener);

/** Follow links inside the page without a reload; links to another stream reload it. */
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-inside]");
  if (link === null || event.defaultPrevented || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(link.href);
});

const isTime = ({ type }) => type === "datetime-local";
const isBox = ({ type }) => type === "checkbox";
const isName = ({ list }) => list; // its list has the names; in the address a colon ends one of them
const shownOf = (field, value) => (isTime(field) ? localTime(value) : isName(field) ? value.replace(/:$/, "") : value);

function asked(field) {
  const { value, list, checked } = field;
  if (isTime(field)) return rfc3339(value);
  if (isBox(field)) return checked ? value : "";
  const bare = (text) => text.replaceAll(" ", "").toLowerCase();
  const name = isName(field) && [...list.options].find((one) => bare(one.value) === bare(value)); // it may be typed in words
  return name ? `${name.value}:` : value;
}

/** The filters of a list: the form that sets them, and the address that names them; `none` leads to the one without. */
export class Filters {
  #fields;

  constructor(form, tab, none) {
    this.#fields = [...form.elements].filter(({ name }) => name);
    onSubmit(form, () => go(addressOf(tab, Object.fromEntries(this.#fields.map((field) => [field.name, asked(field)])))));
    form.addEventListener("change", ({ target }) => isBox(target) && form.requestSubmit());
    none.addEventListener("click", () => go(addressOf(tab)));
    this.summary = form.closest(".fold").querySelector("summary span");
    this.none = none;
  }

  /** Show the filters of an address in the form and return them; null when there are none. */
  of(parameters) {
    for (const field of this.#fields) {
      const value = parameters[field.name] ?? "";
      if (isBox(field)) field.checked = value === field.value;
      else field.value = shownOf(field, value);
    }
    const given = this.#fields.filter(({ name }) => parameters[name]);
    this.none.hidden = given.length === 0;
    const worded = (field) => (isTime(field) ? timeElement : (value) => shownOf(field, value))(parameters[field.name]);
    this.words = () => given.flatMap((field, index) => [index > 0 && ", ", `${field.labels[0].textContent.trim()}: `, worded(field)]);
    say(this.summary, ...this.words());
    return given.length === 0 ? null : Object.fromEntries(given.map(({ name }) => [name, parameters[name]]));
  }
}
