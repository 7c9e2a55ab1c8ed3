"""Run the consumer with a handler that adds the id of each person to the file LEDGER, in LEDGER_SECONDS a batch.

Before it works on a batch it says so in the file: `begin`. With STUBBORN it never ends, not even when it is cancelled.
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from apps.chassis.service import serve
from apps.consumer.app import create_app
from contracts.person import PEOPLE, Person


async def handle(people: Sequence[Person]) -> None:
    ledger = Path(os.environ["LEDGER"])
    write(ledger, "begin\n")
    while "STUBBORN" in os.environ:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3_600)
    await asyncio.sleep(float(os.environ.get("LEDGER_SECONDS", "0")))
    write(ledger, "".join(f"{person.id}\n" for person in people))


def write(ledger: Path, text: str) -> None:
    """Append in one piece, so that a kill cuts no line and two processes may share the file."""
    with ledger.open("ab", buffering=0) as file:
        file.write(text.encode())


if __name__ == "__main__":
    serve(partial(create_app, handlers={PEOPLE: handle}), lambda settings: settings.consumer_port, "CONSUMER_PORT")
