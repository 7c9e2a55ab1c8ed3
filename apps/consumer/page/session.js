/** Who uses the page: they sign in with a key, and the style hides what needs a role (`data-role`) that they lack. */

import { get, post } from "./api.js";
import { byId, onSubmit, report, say } from "./dom.js";

/** Whether they have a role; not known before that was read. */
export const may = (role) => document.body.dataset.roles?.split(" ").includes(role);
const producer = document.querySelector("meta[name=producer-url]").content;
export const SESSION = { name: "session", pause: 5_000, read: () => get("session", { stream: "" }), show: showSession };

function showSession({ name, roles }) {
  if ((document.body.dataset.session ??= `${name} ${roles}`) !== `${name} ${roles}`) location.reload(); // nothing stays that somebody else was shown
  document.body.dataset.roles = roles.join(" ");
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
