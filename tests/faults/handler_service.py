"""The consumer with a handler that keeps a ledger, refuses some events, and fails now and then.

It appends each batch to the file LEDGER, in one piece (see `ledger.Handled`). It fails in a share of FAILURES of the
calls, half of them after the work was done, and always as long as the file OUTAGE exists.
"""

import asyncio
import os
import random
import time
from array import array
from pathlib import Path

from marks import BATCH, DONE, DONE_AND_FAILED, REFUSED, identity_of

from apps.consumer.consuming.batch import Batch, Handler, Reject
from apps.consumer.consuming.policy import Policy, Retry
from tests.event import Event
from tests.event_services import run_consumer

MAX_DELAY_S = 0.03
"""Seconds that a batch may take."""


def recording(ledger: Path, outage: Path, failures: float, chance: random.Random) -> Handler[Event]:
    """Return the handler."""

    async def handle(batch: Batch[Event]) -> None:
        if any(event.text.startswith(REFUSED) for event in batch.values):
            raise Reject("this one is refused")
        if os.path.exists(outage):  # noqa: ASYNC240, PTH110 - takes microseconds
            raise ConnectionError("what the handler needs is out of reach")
        drawn = chance.random()
        if drawn < failures / 2:
            raise TimeoutError("a failure before the work was done")
        await asyncio.sleep(chance.random() * MAX_DELAY_S)
        failing = drawn < failures
        identities = array("q", [identity_of(event.text) for event in batch.values])
        head = array("q", [BATCH, DONE_AND_FAILED if failing else DONE, time.monotonic_ns(), len(identities)])
        with ledger.open("ab", buffering=0) as file:
            file.write((head + identities).tobytes())
        if failing:
            raise TimeoutError("a failure after the work was done")

    return handle


if __name__ == "__main__":
    handle = recording(
        Path(os.environ["LEDGER"]),
        Path(os.environ["OUTAGE"]),
        float(os.environ["FAILURES"]),
        random.Random(os.environ["LEDGER"]),
    )
    # the faults are short, and so are the pauses after them, and the wait for a member that was killed
    policy = Policy(retry=Retry(max_backoff_s=5), session_timeout_s=10)
    run_consumer(handle, policy)
