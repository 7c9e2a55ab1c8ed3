/** Says what cannot be read, why and since when, and when that is over; what was read before is dimmed meanwhile. */

import { arrange, element, say, time } from "./dom.js";

const OVER = 10_000; // ms that the good news stays

export class Notices {
  #list;
  #failing = new Map();
  #over = new Map();

  constructor(list) {
    this.#list = list;
  }

  /** Note that a source cannot be read, as a call found that began at `began`. */
  failed(source, failure, began = Date.now()) {
    const since = this.#failing.get(source)?.since ?? began;
    this.#failing.set(source, { reason: failure.message, since, gone: failure.problem === undefined });
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

  #show() {
    document.body.dataset.failing = [...this.#failing.keys()].join(" ");
    const lines = [...this.#lines()];
    const make = ({ kind }) => element("p", { class: kind });
    arrange(this.#list, lines, (line) => line.key, make, (item, line) => say(item, line.text));
  }

  /** One line a reason: when the whole service is gone, that is one thing and not four. */
  *#lines() {
    const state = this.#failing.get("state");
    if (state?.gone) {
      const text = `Service gone since ${time(state.since)}: ${state.reason}. What is dimmed is from before. Trying again.`;
      yield { key: "gone", kind: "trouble", text };
      return;
    }
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
