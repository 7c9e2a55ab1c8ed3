/** What a record holds, as text: one line, or formatted and coloured, with the place marked that is wrong in it. */

import { element } from "./dom.js";

const BRIEF = 240; // characters of a value in its row
const BEFORE = 25; // characters of them before a match, so that it is in sight in a narrow column

/** A value of JSON as one line of text; a string of its own is without quotes. */
export const textOf = (value) => (typeof value === "string" ? value : (JSON.stringify(value) ?? ""));

/** The text of a content: null, text, or base64 where it is not UTF-8. */
export function contentText(content) {
  if (content === null) return "null";
  return content.text ?? `base64 ${content.base64}`;
}

/** A key as text. */
export const keyText = (key) => (typeof key === "string" ? key : contentText(key));

/** The value of a record as it is: JSON of a decoded one, or its bytes. */
export const valueText = (record) => (record.value ? JSON.stringify(record.value) : contentText(record.content));

/** A part of a text as nodes, with each occurrence of `wanted` marked, and the first of them in sight. */
export function brief(text, wanted) {
  const first = wanted ? text.indexOf(wanted) : -1;
  const begin = Math.max(0, first - BEFORE);
  const part = text.slice(begin, begin + BRIEF);
  const pieces = first < 0 ? [part] : part.split(wanted);
  const nodes = pieces.flatMap((piece, index) => (index === 0 ? [piece] : [element("mark", {}, wanted), piece]));
  return [begin > 0 && "… ", ...nodes, begin + BRIEF < text.length && " …"];
}

/** A content to be read at length; `error` may name a place in it, which is marked. */
export function contentBlock(content, error = "") {
  if (content === null) return element("p", { class: "muted" }, "null");
  if (content.text == null) return element("div", {}, element("p", { class: "muted" }, "not UTF-8, in base64"), block([content.base64]));
  const at = /\(byte (\d+)\)/.exec(error);
  return formatted(content.text, error) ?? block(at ? markedAt(content.text, Number(at[1])) : [content.text]);
}

/** A text of JSON, formatted and coloured; null where that would change more than its white space. */
export function formatted(text, error = "") {
  const asWritten = (_, value, context) => (context?.source === undefined ? value : JSON.rawJSON(context.source));
  try {
    const value = JSON.parse(text, asWritten);
    const compact = text.replace(/("(?:[^"\\]|\\.)*")|\s+/g, "$1");
    return JSON.stringify(value) === compact ? block(coloured(value, /`(\$[^`]+)`/.exec(error)?.[1])) : null;
  } catch {
    return null;
  }
}

/** The nodes of a value that is written over several lines, with the one at the path `wrong` marked. */
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

/** A text with the character at a place in its UTF-8 marked. */
function markedAt(text, byte) {
  const before = new TextDecoder().decode(new TextEncoder().encode(text).slice(0, byte));
  const wrong = [...text.slice(before.length)][0] ?? "";
  return [before, element("mark", { class: "wrong" }, wrong || "end"), text.slice(before.length + wrong.length)];
}

/** A text that is read at length. */
export const block = (nodes, label = "Value") => element("pre", { tabindex: "0", role: "group", "aria-label": label }, ...nodes);

/** Names and values, one pair a line; a value may be an element. */
export function facts(pairs) {
  const rows = pairs.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  return rows.length > 0 ? element("dl", { class: "facts" }, ...rows) : element("p", { class: "muted" }, "none");
}
