/** The calls behind the page, for the stream that it shows. Every failure has a sentence to show. */

import { stream } from "./streams.js";

const GET_TIMEOUT_MS = 10_000; // the slowest read, with Kafka out of reach, takes 8 s
const POST_TIMEOUT_MS = 120_000; // enough to make 100,000 records on a slow machine

/** Why a call failed: `status` is 0 without an answer; `problem` (RFC 9457) is undefined when the answer is not JSON. */
export const failure = (message, status = 0, problem = undefined) => Object.assign(new Error(message), { status, problem });

/** Return the answer of a GET for the stream that the page shows. Omit empty parameters. Throws `failure`. */
export const get = (path, parameters = {}) => call(ofStream(path, parameters), {}, GET_TIMEOUT_MS);

export function post(path, body, parameters = {}) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  return call(ofStream(path, parameters), { method: "POST", headers, body: typeof body === "string" ? body : JSON.stringify(body) }, POST_TIMEOUT_MS);
}

/** Return the health of a stream; 503 is an answer too. */
export const getHealth = (name) => get("health-check", { stream: name }).catch((error) => (error.problem?.status === "unavailable" ? error.problem : Promise.reject(error)));

export const curlOf = (path, parameters = {}) => `curl '${new URL(ofStream(path, parameters), document.baseURI).href.replaceAll("'", "%27")}'`;

/** Add the stream to a relative path; addresses of the producer are absolute or begin with a slash. */
function ofStream(path, parameters = {}) {
  const all = /^(https?:|\/)/.test(path) ? parameters : { stream, ...parameters };
  const query = new URLSearchParams(Object.entries(all).filter(([, value]) => value !== "" && value != null)).toString();
  return query ? `${path}?${query}` : path;
}

async function call(url, options, milliseconds) {
  let answer, text;
  try {
    answer = await fetch(url, { ...options, cache: "no-store", credentials: "include", signal: AbortSignal.timeout(milliseconds) });
    text = await answer.text();
  } catch (error) {
    throw failure(error.name === "TimeoutError" ? `no answer within ${milliseconds / 1000} s` : "no answer");
  }
  if (answer.status === 401) document.body.dataset.refused = ""; // the style shows the form that signs in
  const content = parsed(text);
  if (!answer.ok) throw failure(content?.detail ?? `it answers ${answer.status}`, answer.status, content);
  if (content === undefined) throw failure("it answers what is not JSON", answer.status);
  return content;
}

const exact = (_, value, context) => (Number.isInteger(value) && !Number.isSafeInteger(value) && context?.source ? JSON.rawJSON(context.source) : value);

/** Parse JSON, or return what `wrong` makes of the error; by default, integers that JavaScript would round keep their digits. */
export function parsed(text, reviver = exact, wrong = () => undefined) {
  try {
    return JSON.parse(text, reviver);
  } catch (error) {
    return wrong(error);
  }
}
