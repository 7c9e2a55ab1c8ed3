/** Dialogs that ask before something happens. */

import { byId, say } from "./dom.js";

/** Ask whether to do something, in words of what will happen; return whether to do it. "Cancel" has the focus. */
export function confirmed(question, action) {
  const dialog = byId("ask");
  say(dialog.querySelector("p"), question);
  say(byId("ask-yes"), action);
  dialog.returnValue = "";
  dialog.showModal();
  byId("ask-no").focus();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

byId("ask-no").addEventListener("click", () => byId("ask").close(""));
byId("ask-yes").addEventListener("click", () => byId("ask").close("yes"));
