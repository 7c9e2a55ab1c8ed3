/** Elements and texts. The page never makes HTML of a string, because a record may contain anything. */

export const byId = (id) => document.getElementById(id) ?? document.querySelector(`:is(button, input, textarea)[name="${id}"]`); // a link to `#stop` would give a button of that id the focus
document.addEventListener("keydown", (event) => event.repeat && event.key === "Enter" && event.target.tagName !== "TEXTAREA" && event.preventDefault()); // a held key may have gone down on another page
const settle = () => document.body.animate({ pointerEvents: ["none", "none"] }, 500); // ms without clicks: another page may have put this one under the second click of a double click
settle();
document.addEventListener("visibilitychange", settle);
window.addEventListener("focus", () => document.body.matches(":hover") || settle()); // who points at the page already sees what they click

/** Make an element; children are elements or texts, and null or false are skipped. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}

export const copyOf = (template) => template.content.firstElementChild.cloneNode(true);
export const cell = (kind, ...children) => element("td", { class: kind }, ...children);

/** Fill a node only when its text differs, so that screen readers do not repeat it and selections stay. */
export function say(node, ...contents) {
  const { textContent, childNodes } = element("span", {}, ...contents);
  if (node.textContent !== textContent) node.replaceChildren(...childNodes);
}

/** Give `list` one child per item, in order. Items that stay keep their element and its focus. */
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
  wanted.forEach((child, index) => list.children[index] !== child && list.insertBefore(child, list.children[index] ?? null));
}

/** Whether the keyboard focus is in a list: then the list must not change. */
export const inUse = (list) => list.querySelector(":focus-visible") !== null;

export const button = (label, work, attributes = {}) => Object.assign(element("button", { type: "button", ...attributes }, label), { onclick: work });

/** Disable a button and show the reason; an empty reason enables it. */
export const turn = (off, reason) => Object.assign(off, { ariaDisabled: reason === "" ? null : "true", title: reason });

export const inside = (href, ...children) => element("a", { href, "data-inside": "" }, ...children);
export const count = (value) => (value == null ? "–" : value.toLocaleString("en"));
export const plural = (value, one, more) => `${count(value)} ${value === 1 ? one : more}`;

/** A time in the browser's zone, written as in ISO 8601, which Swedish uses. */
const local = (at) => at.toLocaleString("sv");

/** A time, in milliseconds or RFC 3339, in the browser's zone, which is its title; the day is shown only when it is not today. */
export function timeElement(given) {
  const at = new Date(given);
  if (Number.isNaN(at.getTime())) return element("time", {}, String(given));
  const [day, clock] = local(at).split(" ");
  const isToday = local(new Date()).startsWith(day);
  return element("time", { datetime: at.toISOString(), title: at.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "full" }) }, isToday ? clock : `${day} ${clock}`);
}

export const rfc3339 = (local) => (local ? new Date(local).toISOString() : "");
export const localTime = (rfc) => (Number.isNaN(Date.parse(rfc)) ? "" : local(new Date(rfc)).replace(" ", "T"));

/** Let a button save lines as a file; it is off while the list is empty. */
export function onExport(id, list, name, said, linesOf) {
  const offer = () => turn(byId(id), list.children.length === 0 ? "There is nothing to export." : "");
  new MutationObserver(offer).observe(list, { childList: true });
  offer();
  byId(id).addEventListener("click", () => {
    const link = element("a", { href: URL.createObjectURL(new Blob(linesOf())), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    say(said, `What is listed was saved as ${name}.`);
  });
}

/** Show the outcome of a command; a failure stays until the next command. */
export async function report(output, doing, work) {
  output.classList.remove("trouble");
  say(output, doing);
  try {
    say(output, ...[await work()].flat());
  } catch (failure) {
    output.classList.add("trouble");
    say(output, `That failed: ${failure.message}`);
  }
}

/** Let a form do `work` with its fields when it is submitted, one call at a time. */
export function onSubmit(form, work) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (form.ariaBusy === "true") return;
    form.closest(".fold")?.removeAttribute("open"); // on a phone it would hide what is found
    form.ariaBusy = "true";
    await Promise.resolve(work(Object.fromEntries(new FormData(form)))).finally(() => (form.ariaBusy = "false"));
  });
}

/** Ask for confirmation and return it; "Cancel" has the focus. The question is a text, or texts and elements. */
export function confirmed(question, action) {
  const dialog = byId("ask");
  say(byId("ask-question"), ...[question].flat());
  say(byId("ask-yes"), action);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}
