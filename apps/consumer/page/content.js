/** What a record holds, as text: one line, or formatted and coloured, with the place marked that is wrong in it. */

import { element } from "./dom.js";

const TOKEN = /("(?:[^"\\]|\\.)*")(?=(\s*:)?)|-?\d[\d.eE+-]*|\b(?:true|false|null)\b/g;
const BRIEF = 240; // characters of a value in its row
const BEFORE = 60; // characters of them before a match

/** A value of JSON as one line of text; a string of its own is without quotes. */
export const textOf = (value) => (typeof value === "string" ? value : (JSON.stringify(value) ?? ""));

/** A key as text. */
export const keyText = (key) => (typeof key === "string" ? key : contentText(key));

/** The text of a content: null, text, or base64 where it is not UTF-8. */
export function contentText(content) {
  if (content === null) return "null";
  return content.text ?? `base64 ${content.base64}`;
}

/** The value of a record as it is: JSON of a decoded one, or its bytes. */
export const valueText = (record) => (record.value ? JSON.stringify(record.value) : contentText(record.content));

/** A part of a text as nodes, with each occurrence of `wanted` marked, and the first of them in sight. */
export function brief(text, wanted) {
  const first = wanted ? text.indexOf(wanted) : -1;
  const begin = first > BRIEF - BEFORE ? first - BEFORE : 0;
  const part = text.slice(begin, begin + BRIEF);
  const pieces = first < 0 ? [part] : part.split(wanted);
  const nodes = pieces.flatMap((piece, index) => (index === 0 ? [piece] : [element("mark", {}, wanted), piece]));
  return [begin > 0 && "… ", ...nodes, begin + BRIEF < text.length && " …"];
}

/** A content to be read at length; `error` may name a place in it, which is marked. */
export function contentBlock(content, error = "") {
  if (content === null) return element("p", { class: "muted" }, "null");
  const { text } = content;
  if (text === undefined || text === null) return element("div", {}, element("p", { class: "muted" }, "not UTF-8, in base64"), block([content.base64]));
  const pretty = formatted(text);
  if (pretty !== null) return jsonBlock(pretty, error);
  const at = /\(byte (\d+)\)/.exec(error);
  return block(at === null ? [text] : markedAt(text, Number(at[1])));
}

/** A value of JSON, formatted and coloured. */
export const valueBlock = (value, error) => jsonBlock(JSON.stringify(value, null, 2), error);

/**
 * Format JSON, where that changes nothing: a number too large for JavaScript, a name given twice or a space that somebody
 * looks for must not get lost.
 */
function formatted(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && JSON.stringify(value) === text ? JSON.stringify(value, null, 2) : null;
  } catch {
    return null;
  }
}

const block = (nodes) => element("pre", { tabindex: "0", role: "group", "aria-label": "Value" }, ...nodes);

function jsonBlock(text, error = "") {
  const lines = text.split("\n");
  const path = /`\$((?:\.[^.[`]+|\[\d+\])+)`/.exec(error ?? "");
  const wrong = path === null ? null : lineOf(lines, [...path[1].matchAll(/\.([^.[]+)|\[(\d+)\]/g)].map(([, name, index]) => name ?? Number(index)));
  const nodes = lines.flatMap((line, index) => {
    const coloured = [...colours(line)];
    return [index === wrong ? element("mark", { class: "wrong", title: error }, ...coloured) : coloured, "\n"].flat();
  });
  return block(nodes.slice(0, -1));
}

function* colours(line) {
  let end = 0;
  for (const match of line.matchAll(TOKEN)) {
    const [token, string, colon] = match;
    yield line.slice(end, match.index);
    yield element("span", { class: string === undefined ? "atom" : colon ? "field" : "string" }, token);
    end = match.index + token.length;
  }
  yield line.slice(end);
}

/** The number of the line on which a path leads to in formatted JSON, or null. */
function lineOf(lines, path) {
  let at = 0;
  for (const [depth, step] of path.entries()) {
    const pad = "  ".repeat(depth + 1);
    let left = typeof step === "number" ? step : 0;
    for (at += 1; ; at += 1) {
      if (at >= lines.length || !lines[at].startsWith(pad)) return null;
      if (" ]}".includes(lines[at][pad.length])) continue;
      if (typeof step === "string" ? lines[at].startsWith(`${pad}${JSON.stringify(step)}: `) : left-- === 0) break;
    }
  }
  return at;
}

/** A text with the character at a place in its UTF-8 marked. */
function markedAt(text, byte) {
  const bytes = new TextEncoder().encode(text);
  const before = new TextDecoder().decode(bytes.slice(0, byte));
  const wrong = [...text.slice(before.length)][0] ?? "";
  return [before, element("mark", { class: "wrong" }, wrong || "end"), text.slice(before.length + wrong.length)];
}

/** The headers of a record, one pair a line. */
export function headerList(headers) {
  if (headers.length === 0) return element("p", { class: "muted" }, "none");
  return facts(headers.map(({ name, value }) => [name, contentText(value)]));
}

/** Names and values, one pair a line; a value may be an element. */
export function facts(pairs) {
  const rows = pairs.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  return element("dl", { class: "facts" }, ...rows);
}
