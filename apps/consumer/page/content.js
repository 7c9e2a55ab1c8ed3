/** The content of a record as text: on one line, or formatted and coloured with the wrong place marked. */

import { parsed } from "./api.js";
import { element } from "./dom.js";

export const UNKNOWN = "unknown"; // another writer of dead letters left it out
const ROW_CHARACTERS = 240; // characters of a value that its row shows
export const MASK = "…"; // stands for a key, a header or an error that is masked
const WHY_MASKED = "Sensitive fields, headers and errors are shown as …, because your key lacks the role read:sensitive.";
const CHARACTERS_BEFORE_MATCH = 25; // characters before a match, few enough that a narrow column shows the match

/** A JSON value on one line; a plain string has no quotes. */
export const textOf = (value) => (typeof value === "string" ? value : (JSON.stringify(value) ?? ""));

/** The content as text: null, UTF-8 text, or base64. */
export const contentText = (content) => (content === null ? "null" : (content.text ?? `base64 ${content.base64}`));
export const keyContent = ({ key }) => (key === null ? element("span", { class: "muted" }, "no key") : contentText(key));
export const maskedSign = ({ masked }) => masked && element("small", { class: "masked", title: WHY_MASKED }, "masked");

/** The value of a record as text: compact JSON when it was decoded, else its bytes; a deletion has none. */
export const valueText = (record) => record.value ? JSON.stringify(record.value) : record.deleted ? "deleted" : contentText(record.content);

/** Part of a text as nodes, each match of `wanted` marked and the first one near the beginning. */
export function brief(text, wanted) {
  const first = wanted ? text.indexOf(wanted) : -1;
  const begin = Math.max(0, first - CHARACTERS_BEFORE_MATCH);
  const part = text.slice(begin, begin + ROW_CHARACTERS);
  const pieces = first < 0 ? [part] : part.split(wanted);
  const nodes = pieces.flatMap((piece, index) => (index === 0 ? [piece] : [element("mark", {}, wanted), piece]));
  return [begin > 0 && "… ", ...nodes, begin + ROW_CHARACTERS < text.length && " …"];
}

/** The full content; the place that `error` names is marked. */
export function contentBlock(content, error = "") {
  if (content === null) return element("p", { class: "muted" }, "null");
  if (content.text == null) return element("div", {}, element("p", { class: "muted" }, "not UTF-8, in base64"), block([content.base64]));
  const at = /\(byte (\d+)\)/.exec(error);
  return formatted(content.text, error) ?? block(at ? markedAt(content.text, Number(at[1])) : [content.text]);
}

/** JSON formatted and coloured; null when that would change more than white space. */
export function formatted(text, error = "") {
  const asWritten = (_, value, context) => (context?.source === undefined ? value : JSON.rawJSON(context.source));
  const value = parsed(text, asWritten);
  const compact = text.replace(/("(?:[^"\\]|\\.)*")|\s+/g, "$1");
  return JSON.stringify(value) === compact ? block(coloured(value, /`(\$[^`]+)`/.exec(error)?.[1])) : null;
}

/** The nodes of a value over several lines; the one at the path `wrong` is marked. */
function coloured(value, wrong, path = "$", line = "\n") {
  const next = `${line}  `;
  const list = Array.isArray(value);
  let nodes;
  if (JSON.isRawJSON?.(value) || typeof value !== "object" || value === null) {
    const text = JSON.stringify(value);
    nodes = [element("span", { class: text.startsWith('"') ? "string" : "atom" }, text)];
  } else {
    const inner = Object.entries(value).flatMap(([name, one], index) => [
      `${index === 0 ? "" : ","}${next}`,
      ...(list ? [] : [element("span", { class: "field" }, JSON.stringify(name)), ": "]),
      ...coloured(one, wrong, list ? `${path}[${name}]` : `${path}.${name}`, next),
    ]);
    nodes = [list ? "[" : "{", ...inner, inner.length > 0 && line, list ? "]" : "}"];
  }
  return path === wrong ? [element("mark", { class: "wrong" }, ...nodes)] : nodes;
}

function markedAt(text, byte) {
  const before = new TextDecoder().decode(new TextEncoder().encode(text).slice(0, byte));
  const wrong = [...text.slice(before.length)][0] ?? "";
  return [before, element("mark", { class: "wrong" }, wrong || "end"), text.slice(before.length + wrong.length)];
}

export const block = (nodes, label = "Value") => element("pre", { tabindex: "0", role: "group", "aria-label": label }, ...nodes);

/** The name of the error of a dead letter, as logs have it: of `msgspec.ValidationError` it is "ValidationError". */
export const nameOf = ({ error_type: type }) => (type ?? UNKNOWN).split(".").at(-1);
export const reasonOf = (letter) => [element("b", {}, nameOf(letter)), letter.error ? `: ${letter.error}` : ""];

/** Names and values, one pair per line; a value may be an element. */
export const facts = (pairs) => element("dl", { class: "facts" }, ...pairs.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
