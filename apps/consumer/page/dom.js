/** Elements and texts. Nothing here, or elsewhere in the page, makes HTML of a string: a record may contain anything. */

const ZONED = { dateStyle: "medium", timeStyle: "full" };
const number = new Intl.NumberFormat("en");

export const byId = (id) => document.getElementById(id);

/** Make an element; children are elements or texts, those that are null or false are left out. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}

/** Make a cell of a table, of a class. */
export const cell = (kind, ...children) => element("td", { class: kind }, ...children);

/** Set a text where it differs, so that nobody hears it again and no selection is lost. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Make the children of `list` those of `items`, in order. An item that is there keeps its element, with its focus. */
export function arrange(list, items, keyOf, make, update = () => {}) {
  const there = new Map([...list.children].map((child) => [child.dataset.key, child]));
  const wanted = [...items].map((item) => {
    const child = there.get(keyOf(item)) ?? make(item);
    child.dataset.key = keyOf(item);
    there.delete(keyOf(item));
    update(child, item);
    return child;
  });
  for (const child of there.values()) child.remove();
  for (const [index, child] of wanted.entries()) {
    if (list.children[index] !== child) list.insertBefore(child, list.children[index] ?? null);
  }
}

/** Whether somebody at the keyboard is in a list: then it stays as it is. */
export const inUse = (list) => list.querySelector(":focus-visible") !== null;

/** A button that does `work` when it is pressed. */
export function button(label, work, attributes = {}) {
  const made = element("button", { type: "button", ...attributes }, label);
  made.addEventListener("click", work);
  return made;
}

/** Turn a button off for a reason, which it shows; without one it is on. */
export function turn(off, reason) {
  off.ariaDisabled = reason === "" ? null : "true";
  off.title = reason;
}

/** A link to another address of this page. */
export const inside = (href, ...children) => element("a", { href, "data-inside": "" }, ...children);

export const count = (value) => (value == null ? "–" : number.format(value));

export const plural = (value, one, more) => `${count(value)} ${value === 1 ? one : more}`;

const wide = matchMedia("(width >= 40rem)");

/** Open what is folded where there is room: on a phone it would fill the first screen. */
function unfold() {
  for (const fold of document.querySelectorAll(".fold")) fold.open = wide.matches;
}

wide.addEventListener("change", unfold);
unfold();

/** A time in the browser's zone, as ISO 8601 writes it: so does Swedish. */
const local = (at) => at.toLocaleString("sv");

/** A time in the browser's zone, with the day only when it is another one than today. */
export function time(milliseconds) {
  const [day, clock] = local(new Date(milliseconds)).split(" ");
  return local(new Date()).startsWith(day) ? clock : `${day} ${clock}`;
}

/** A time as an element, with its zone for those who look closely. */
export function timeElement(milliseconds) {
  const at = new Date(milliseconds);
  if (Number.isNaN(at.getTime())) return element("time", {}, String(milliseconds));
  return element("time", { datetime: at.toISOString(), title: at.toLocaleString("en-GB", ZONED) }, time(milliseconds));
}

/** What a form's field of date and time says, as RFC 3339, or "". */
export const rfc3339 = (local) => (local ? new Date(local).toISOString() : "");

/** What a form's field of date and time shows of a time in RFC 3339, or "". */
export const localTime = (rfc) => (Number.isNaN(Date.parse(rfc)) ? "" : local(new Date(rfc)).replace(" ", "T"));

/** Have a button save lines as a file. */
export function onExport(id, name, said, linesOf) {
  byId(id).addEventListener("click", () => {
    const lines = linesOf();
    if (lines.length === 0) return say(said, "There is nothing to export.");
    const link = element("a", { href: URL.createObjectURL(new Blob(lines)), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    say(said, `What is listed was saved as ${name}.`);
  });
}

/** Show how a command went; a failure stays until the next one. */
export async function report(output, doing, work) {
  output.classList.remove("trouble");
  say(output, doing);
  try {
    const done = await work();
    if (typeof done === "string") say(output, done);
    else output.replaceChildren(done);
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
    unfold();
    form.ariaBusy = "true";
    await Promise.resolve(work(Object.fromEntries(new FormData(form)))).finally(() => (form.ariaBusy = "false"));
  });
}

/** Ask whether to do something, in words of what will happen; return whether to do it. "Cancel" has the focus. */
export function confirmed(question, action) {
  const dialog = byId("ask");
  say(byId("ask-question"), question);
  say(byId("ask-yes"), action);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}
