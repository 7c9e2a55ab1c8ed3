/** Who uses the page: they sign in with a key, and the style hides what needs a role (`data-role`) that they lack. */

import { address, addressOf } from "./address.js";
import { failure, post } from "./api.js";
import { byId, onSubmit, report, say } from "./dom.js";
import { producer } from "./streams.js";

const AT_PRODUCER = "session at the producer"; // set while one may last, which no script can see

/** Name the user; with the role `operate`, do also what is for operators. */
export function showSession({ name, roles }, forOperators) {
  if (byId("sign-in").ariaBusy === "true") return; // the page must not go before the producer has answered
  if ((document.body.dataset.session ??= `${name} ${roles}`) !== `${name} ${roles}`) leave();
  document.body.dataset.roles = roles.join(" ");
  if (roles.includes("operate")) forOperators();
  say(byId("who"), name === null ? "" : `${name}: ${roles.join(", ")}${roles.includes("read:sensitive") ? "" : " (sensitive fields are masked)"}`);
}

/** Load the page again without what somebody was shown or searched for; a link that a stranger opened stays. */
const leave = () => (byId("who").textContent === "" ? location.reload() : location.replace(addressOf(address().tab)));

/** End a session. A service that answers 401 has removed its cookie too. */
const end = (service, url) => post(url, undefined, { stream: "" }).catch(({ status, message }) => status === 401 || Promise.reject(failure(`the session at the ${service} does not end: ${message}`)));

async function endAtProducer() {
  if (producer !== "") await end("producer", `${producer}/session/end`).catch((error) => localStorage.getItem(AT_PRODUCER) && Promise.reject(error));
  localStorage.removeItem(AT_PRODUCER);
}

/** Sign in at this service, then at the producer, which may not know the key. */
async function signIn({ key }) {
  if (localStorage.getItem(AT_PRODUCER)) await endAtProducer(); // nobody acts there as somebody before
  await post("session/start", { key }, { stream: "" });
  if (producer !== "") await post(`${producer}/session/start`, { key }).then(() => localStorage.setItem(AT_PRODUCER, "may last"), () => {});
}

const reported = (said, work) => report(byId(said), "One moment …", () => work().then(leave).then(() => ""));
onSubmit(byId("sign-in"), (fields) => reported("sign-in-said", () => signIn(fields)));
byId("sign-out").addEventListener("click", () => reported("sign-out-said", () => endAtProducer().then(() => end("consumer", "session/end"))));
