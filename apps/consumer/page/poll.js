/** Asks again and again, gently: one request of a kind at a time, and none while nobody looks. */

/**
 * Read, show and wait, for ever; what fails becomes a notice and is tried again.
 * @param {number} pause milliseconds between the end of a round and the next one
 * @param {() => Promise<any>} read
 * @param {(answer: any) => void} show
 */
export async function poll(notices, source, pause, read, show) {
  for (;;) {
    await visible();
    try {
      show(await read());
      notices.succeeded(source);
    } catch (failure) {
      notices.failed(source, failure.message);
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

async function visible() {
  while (document.hidden) {
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}
