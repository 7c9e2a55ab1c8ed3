/** Creating records: a call of the producer, where one is known and answers. */

import { get, post } from "./api.js";
import { byId, onSubmit, plural, report, say } from "./dom.js";
import { stream } from "./streams.js";

const PAUSE = 2_000; // ms between two looks whether the producer answers

/** Wire the field, and look now and again whether it can be used. */
export async function creation() {
  const producer = document.querySelector("meta[name=producer-url]").content;
  if (producer === "") return;
  const form = byId("create");
  onSubmit(form, ({ number }) =>
    report(form.querySelector("output"), "Creating …", async () => {
      const made = await post(`${producer}/producers/${stream}/generate?number=${number}`);
      return outcome(made);
    }),
  );
  say(byId("no-producer"), `No records can be created from here: ${producer} does not answer.`);
  for (;;) {
    if (!document.hidden) {
      const there = await answers(producer);
      form.hidden = !there;
      byId("no-producer").hidden = there;
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
  }
}

/** The answer is the records, or receipts of which some tell an error (207). */
function outcome(made) {
  if (Array.isArray(made)) return `${plural(made.length, "was", "were")} created.`;
  const failed = made.receipts.filter((receipt) => receipt.error);
  throw new Error(`${failed.length} of ${made.receipts.length} were not confirmed: ${failed[0].error}`);
}

async function answers(producer) {
  try {
    await get(`${producer}/livez`);
    return true;
  } catch {
    return false;
  }
}
