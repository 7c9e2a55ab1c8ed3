/** Says what cannot be read, why and since when; what was read before is dimmed meanwhile. */

import { arrange, element, say, time } from "./dom.js";

export class Notices {
  #list;
  #failing = new Map();

  constructor(list) {
    this.#list = list;
  }

  /** Note that a source cannot be read, as a call found that began at `began`. */
  failed(source, failure, began = Date.now()) {
    const since = this.#failing.get(source)?.since ?? began;
    this.#failing.set(source, { reason: failure.message, since, gone: failure.problem === undefined });
    this.#show();
  }

  /** Note that a source was read, or is not read any more. */
  succeeded(source) {
    if (this.#failing.delete(source)) this.#show();
  }

  #show() {
    document.body.dataset.failing = [...this.#failing.keys()].join(" ");
    const lines = [...this.#lines()];
    const make = () => element("p", { class: "trouble" });
    arrange(this.#list, lines, (line) => line.key, make, (item, line) => say(item, line.text));
  }

  /** One line a reason: when the whole service is gone, that is one thing and not four. */
  *#lines() {
    const state = this.#failing.get("state");
    if (state?.gone) {
      const text = `Service gone since ${time(state.since)}: ${state.reason}. What is dimmed is from before. Trying again.`;
      yield { key: "gone", text };
      return;
    }
    const reasons = Map.groupBy(this.#failing, ([, { reason }]) => reason);
    for (const [reason, sources] of reasons) {
      const names = sources.map(([source]) => source).join(", ");
      const since = Math.min(...sources.map(([, failed]) => failed.since));
      yield { key: reason, text: `Cannot read ${names}: ${reason} (since ${time(since)}). Trying again.` };
    }
  }
}
