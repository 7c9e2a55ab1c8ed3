/** Elements and texts. Nothing here, or elsewhere in the page, makes HTML of a string: a record may contain anything. */

const SVG = "http://www.w3.org/2000/svg";
const number = new Intl.NumberFormat("en");

export const byId = (id) => document.getElementById(id);

/** Make an element; children are elements or texts, those that are null or false are left out. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Make an element of a drawing. */
export function drawn(tag, attributes = {}) {
  return filled(document.createElementNS(SVG, tag), attributes, []);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}

/** Set a text where it differs, so that nobody hears it again and no selection is lost. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Make the children of `list` those of `items`, in their order. An item whose key is there already keeps its element,
 * and with it what is open, selected or in focus.
 */
export function arrange(list, items, keyOf, make, update = () => {}) {
  const there = new Map([...list.children].map((child) => [child.dataset.key, child]));
  let place = list.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = there.get(key);
    there.delete(key);
    if (child === undefined) {
      child = make(item);
      child.dataset.key = key;
    }
    update(child, item);
    if (child === place) place = place.nextElementSibling;
    else list.insertBefore(child, place);
  }
  for (const child of there.values()) child.remove();
}

/** Whether something in a list is open, or held by somebody at the keyboard: then it stays as it is. */
export function inUse(list) {
  return list.querySelector("details[open], :focus-visible") !== null;
}

export const count = (value) => (value == null ? "–" : number.format(value));

export const plural = (value, one, more) => `${count(value)} ${value === 1 ? one : more}`;

/** A time in the browser's zone, with the day only when it is another one than today. */
export function time(milliseconds) {
  const at = new Date(milliseconds);
  const digits = (value, length = 2) => String(value).padStart(length, "0");
  const day = `${at.getFullYear()}-${digits(at.getMonth() + 1)}-${digits(at.getDate())}`;
  const clock = `${digits(at.getHours())}:${digits(at.getMinutes())}:${digits(at.getSeconds())}`;
  return at.toDateString() === new Date().toDateString() ? clock : `${day} ${clock}`;
}

export const exactTime = (milliseconds) => {
  const at = new Date(milliseconds);
  return Number.isNaN(at.getTime()) ? String(milliseconds) : at.toISOString();
};

/** What a form's field of date and time says, as RFC 3339, or "". */
export const rfc3339 = (local) => (local ? new Date(local).toISOString() : "");

/** Show how a command went; a failure stays until the next one. */
export async function report(output, doing, work) {
  output.classList.remove("trouble");
  say(output, doing);
  try {
    say(output, await work());
  } catch (failure) {
    output.classList.add("trouble");
    say(output, `That failed: ${failure.message}`);
  }
}

/** Have a form's button do `work` with its fields, once at a time. */
export function onSubmit(form, work) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (form.ariaBusy === "true") return;
    form.ariaBusy = "true";
    try {
      await work(Object.fromEntries(new FormData(form)));
    } finally {
      form.ariaBusy = "false";
    }
  });
}
