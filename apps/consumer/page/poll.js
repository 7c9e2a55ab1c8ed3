/** Asks again and again, gently: one request of a kind at a time, and none while nobody looks. */

import { Failure } from "./api.js";

const LATE = 4_000; // ms after which what was read before is not current; with Kafka out of reach a status takes 3 s

/** Look, and wait `pause` milliseconds until the next look, for ever. */
export async function poll(pause, look) {
  for (;;) {
    await visible();
    await look();
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

/** Read and show; what fails, or takes too long, becomes a notice, and `lose` shows that it cannot be read. */
export async function look(notices, source, read, show, lose = () => {}) {
  const began = Date.now();
  const fail = (failure) => {
    lose(failure);
    notices.failed(source, failure, began);
  };
  const late = setTimeout(fail, LATE, new Failure(`no answer for ${LATE / 1000} s`));
  try {
    show(await read());
    notices.succeeded(source);
  } catch (failure) {
    fail(failure);
  } finally {
    clearTimeout(late);
  }
}

async function visible() {
  while (document.hidden) await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
}
