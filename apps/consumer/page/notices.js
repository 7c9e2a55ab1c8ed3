/** Says what cannot be read, why and since when, and when that is over. */

import { arrange, element, say, time } from "./dom.js";

const OVER = 10_000; // ms that the good news stays

export class Notices {
  #list;
  #failing = new Map();
  #over = new Map();

  constructor(list) {
    this.#list = list;
  }

  failed(source, reason) {
    const since = this.#failing.get(source)?.since ?? Date.now();
    this.#failing.set(source, { reason, since });
    this.#over.delete(source);
    this.#show();
  }

  succeeded(source) {
    const failed = this.#failing.get(source);
    if (failed === undefined) return;
    this.#failing.delete(source);
    this.#over.set(source, Math.max(1, Math.round((Date.now() - failed.since) / 1000)));
    this.#show();
    setTimeout(() => {
      this.#over.delete(source);
      this.#show();
    }, OVER);
  }

  /** What is not read any more cannot fail. */
  forget(source) {
    if (this.#failing.delete(source)) this.#show();
  }

  isFailing(source) {
    return this.#failing.has(source);
  }

  #show() {
    const lines = [...this.#lines()];
    const make = ({ kind }) => element("p", { class: kind });
    arrange(this.#list, lines, (line) => line.key, make, (item, line) => say(item, line.text));
  }

  /** One line a reason: when the whole service is gone, that is one thing and not four. */
  *#lines() {
    const reasons = Map.groupBy(this.#failing, ([, { reason }]) => reason);
    for (const [reason, sources] of reasons) {
      const names = sources.map(([source]) => source).join(", ");
      const since = Math.min(...sources.map(([, failed]) => failed.since));
      yield { key: reason, kind: "trouble", text: `Cannot read ${names}: ${reason} (since ${time(since)}). Trying again.` };
    }
    if (this.#over.size > 0) {
      const names = [...this.#over].map(([source, seconds]) => `${source} (after ${seconds} s)`).join(", ");
      yield { key: "", kind: "over", text: `Can be read again: ${names}.` };
    }
  }
}
