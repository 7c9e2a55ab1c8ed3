"""The consumer with a handler that fails for people by their names, or for all while the file OUTAGE exists.

It has small batches, and tells in the file LEDGER whom it has handled. `poison` fails, `exit` exits from a task that it
makes, `cancel` cancels its own, `slow` takes a minute.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from apps.chassis.service import serve
from apps.consumer.app import create_app
from apps.consumer.consuming.policy import Batching, Policy
from contracts.person import PEOPLE, Person


async def leave() -> None:
    sys.exit(3)


async def handle(people: Sequence[Person]) -> None:
    if Path(os.environ["OUTAGE"]).exists():  # noqa: ASYNC240 - takes microseconds
        raise ConnectionError("no database")
    names = {person.name for person in people}
    if "poison" in names:
        raise RuntimeError("no database takes it")
    if "exit" in names:
        async with asyncio.TaskGroup() as group:
            group.create_task(leave())
    if "cancel" in names and (task := asyncio.current_task()):
        task.cancel()
        await asyncio.sleep(0)
    if "slow" in names:
        await asyncio.sleep(60)
    with Path(os.environ["LEDGER"]).open("a") as ledger:  # noqa: ASYNC230 - likewise
        ledger.write("".join(f"{person.id}\n" for person in people))


if __name__ == "__main__":
    policy = Policy(batching=Batching(records=200))
    serve(
        partial(create_app, handlers={PEOPLE: handle}, policies={PEOPLE: policy}),
        lambda settings: settings.consumer_port,
        "CONSUMER_PORT",
    )
