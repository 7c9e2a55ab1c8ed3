/** What a record holds, as text: its row opens to this. */

import { element, exactTime, time } from "./dom.js";

/**
 * Format JSON, where that changes nothing: a number too large for JavaScript, a name given twice or a space that somebody
 * looks for must not get lost, so other text is shown as it is.
 */
export function formatted(text) {
  try {
    const value = JSON.parse(text);
    if (typeof value === "object" && JSON.stringify(value) === text) return JSON.stringify(value, null, 2);
  } catch {
    // not JSON: as it is
  }
  return text;
}

/** The text of a content: null, text, or base64 where it is not UTF-8. */
export function contentText(content) {
  if (content === null) return "null";
  return content.text ?? `base64 ${content.base64}`;
}

/** A content to be read at length. */
export function contentBlock(content) {
  if (content === null) return element("p", { class: "muted" }, "null");
  if (content.text !== undefined && content.text !== null) return block(formatted(content.text));
  return element("div", {}, element("p", { class: "muted" }, "not UTF-8, in base64"), block(content.base64));
}

export const block = (text) => element("pre", { tabindex: "0" }, text);

export function headerList(headers) {
  if (headers.length === 0) return element("p", { class: "muted" }, "none");
  return facts(headers.map(({ name, value }) => [name, contentText(value)]));
}

/** Names and values, one pair a line. */
export function facts(pairs) {
  const rows = pairs.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  return element("dl", { class: "facts" }, ...rows);
}

export function timeElement(milliseconds) {
  return element("time", { datetime: exactTime(milliseconds), title: exactTime(milliseconds) }, time(milliseconds));
}

/** A part of a row, whose name is read out and shown where there is no head. */
export function cell(name, kind, ...children) {
  return element("span", { class: kind }, element("span", { class: "name" }, `${name} `), ...children);
}
