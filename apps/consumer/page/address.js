/** What the page shows, as its address names it: stream, tab, filters and open record. A link can be sent, and Back works. */

const listeners = [];

/** The parameters of the address. */
export const address = () => Object.fromEntries(new URLSearchParams(location.search));

/** Return the address with some parameters changed; those that are empty are left out. */
export function addressWith(changes) {
  const kept = Object.entries({ ...address(), ...changes }).filter(([, value]) => value !== "" && value != null);
  return kept.length === 0 ? location.pathname : `?${new URLSearchParams(kept)}`;
}

/** Return the address of a tab with its own filters, and nothing of what another tab shows. */
export function addressOf(tab, filters = {}) {
  const { stream } = address();
  const parameters = Object.entries({ stream, tab, ...filters }).filter(([, value]) => value !== "" && value != null);
  return parameters.length === 0 ? location.pathname : `?${new URLSearchParams(parameters)}`;
}

/** Show another address; nothing happens when it is the present one. */
export function go(to) {
  if (new URL(to, location.href).href === location.href) return;
  history.pushState(null, "", to);
  changed();
}

/** Call `listener` with the parameters of each new address. */
export const onAddress = (listener) => listeners.push(listener);

function changed() {
  for (const listener of listeners) listener(address());
}

/** Follow links within the page without loading it again; those to another stream load it. */
function follow(event) {
  const link = event.target.closest?.("a[data-inside]");
  if (link === null || event.defaultPrevented || event.button !== 0) return;
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(link.href);
}

document.addEventListener("click", follow);
window.addEventListener("popstate", changed);
