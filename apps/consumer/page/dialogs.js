/** Dialogs that ask before something happens. */

import { byId, say } from "./dom.js";

/**
 * Ask whether to do something, and return the answer; "no" has the focus.
 * @param {string} question what will happen, with the number of records
 * @param {string} action the word on the button that does it
 * @returns {Promise<boolean>}
 */
export function confirmed(question, action) {
  const dialog = byId("ask");
  say(dialog.querySelector("p"), question);
  say(byId("ask-yes"), action);
  dialog.returnValue = "";
  dialog.showModal();
  byId("ask-no").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

byId("ask-no").addEventListener("click", () => byId("ask").close(""));
byId("ask-yes").addEventListener("click", () => byId("ask").close("yes"));
