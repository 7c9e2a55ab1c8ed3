/** Who uses the page: they sign in with a key, and the style hides what needs a role (`data-role`) that they lack. */

import { post } from "./api.js";
import { byId, onSubmit, report, say } from "./dom.js";
import { producer } from "./streams.js";

/** Name the user; with the role `operate`, do also what is for operators. */
export function showSession({ name, roles }, forOperators) {
  if ((document.body.dataset.session ??= `${name} ${roles}`) !== `${name} ${roles}`) location.reload(); // nothing stays that somebody else was shown
  document.body.dataset.roles = roles.join(" ");
  if (roles.includes("operate")) forOperators();
  say(byId("who"), name === null ? "" : `${name}: ${roles.join(", ")}${roles.includes("read:sensitive") ? "" : " (sensitive fields are masked)"}`);
}

/** Sign in or out at this service, then at the producer, which may not know the key. */
async function atBoth(path, body) {
  await post(path, body, { stream: "" });
  if (producer !== "") await post(`${producer}/${path}`, body).catch(() => {});
  location.reload();
}

onSubmit(byId("sign-in"), ({ key }) => report(byId("sign-in-said"), "One moment …", () => atBoth("session/start", { key }).then(() => "")));
byId("sign-out").addEventListener("click", () => atBoth("session/end"));
