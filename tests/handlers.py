"""Handlers of the consumers under test, which are steered by files that environment variables name."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from apps.chassis.settings import Settings
from apps.consumer.consuming.batch import Batch, Handler, Reject
from apps.consumer.consuming.policy import Batching, Policy
from apps.consumer.consuming.publish import Publish
from apps.consumer.consuming.resource import AnyHandler, resource
from apps.consumer.handlers import handle_nothing
from contracts.stream import Stream
from tests.event import Event

REFUSED, FAILING_ONCE = "refused", "failing once"
"""Texts of events that handlers do not take, for good or at first: no made-up event has them."""


def exists(variable: str) -> bool:
    return Path(os.environ[variable]).exists()


def append(variable: str, text: str) -> None:
    """Append in one piece, so that a kill cuts no line and two processes may share the file."""
    with Path(os.environ[variable]).open("ab", buffering=0) as file:
        file.write(text.encode())


def record_ids(events: Sequence[Event]) -> None:
    append("LEDGER", "".join(f"{event.id}\n" for event in events))


async def recording(batch: Batch[Event]) -> None:
    """Add `begin`, then the ids of a batch to LEDGER, LEDGER_SECONDS later; with STUBBORN, ignore any cancellation."""
    append("LEDGER", "begin\n")
    while "STUBBORN" in os.environ:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3_600)
    await asyncio.sleep(float(os.environ.get("LEDGER_SECONDS", "0")))
    record_ids(batch.values)


async def refusing(batch: Batch[Event]) -> None:
    """Refuse some, but for where REFUSING names a file that does not exist."""
    refuses = "REFUSING" not in os.environ or exists("REFUSING")
    if refuses and any(event.text == REFUSED for event in batch.values):
        raise Reject(f"the text {REFUSED} is not taken")
    if "LEDGER" in os.environ:
        record_ids(batch.values)


async def steered(_: Batch[Event]) -> None:
    """Do what the file STEER says: `work`, `fail`, or `wait` for another word."""
    while (word := Path(os.environ["STEER"]).read_text()) == "wait":  # noqa: ASYNC110, ASYNC240 - no event tells of a file
        await asyncio.sleep(0.02)
    if word == "fail":
        raise RuntimeError("the database is down")


async def failing(batch: Batch[Event]) -> None:
    """Fail by what is written in the events, and for all while the file OUTAGE exists."""
    if exists("OUTAGE"):
        raise ConnectionError("no database")
    texts = {event.text for event in batch.values}
    if "poison" in texts:
        raise RuntimeError("no database takes it")
    if "exit" in texts:
        async with asyncio.TaskGroup() as group:
            group.create_task(leave())
    if "cancel" in texts and (task := asyncio.current_task()):
        task.cancel()
        await asyncio.sleep(0)
    if "slow" in texts:
        await asyncio.sleep(60)
    record_ids(batch.values)


async def mendable(batch: Batch[Event]) -> None:
    """Fail for poison until the file MENDED exists; reject what is refused."""
    texts = {event.text for event in batch.values}
    if REFUSED in texts:
        raise Reject(f"the text {REFUSED} is not taken")
    if "poison" in texts and not exists("MENDED"):
        raise RuntimeError("no database takes it")
    record_ids(batch.values)


async def blocking(batch: Batch[Event]) -> None:
    """Block the event loop for as many seconds as the events say, and record their ids."""
    for event in batch.values:
        time.sleep(event.number)  # noqa: ASYNC251 - as a handler does that calls a blocking library
    record_ids(batch.values)


async def leave() -> None:
    sys.exit(3)


class Refused(Reject):
    """Quotes the event that it was raised for."""


failed: set[str] = set()


async def quoting(batch: Batch[Event]) -> None:
    """Raise errors that quote the events."""
    for event in batch.values:
        if event.text == REFUSED:
            raise Refused(f"{event} is refused")
        if event.text == FAILING_ONCE and event.id not in failed:
            failed.add(event.id)
            raise LookupError(f"{event.text} with the key {event.id} is unknown for now")


async def cancelling(batch: Batch[Event]) -> None:
    """Cancel the tasks of the client that the texts of the events name, once for each event."""
    for event in batch.values:
        if event.id in failed:
            continue
        failed.add(event.id)
        for task in asyncio.all_tasks():
            if event.text == getattr(task.get_coro(), "__qualname__", ""):
                task.cancel()


@asynccontextmanager
async def copying(_: Settings, publish: Publish) -> AsyncIterator[Handler[Event]]:
    """Copy events to the topic COPIES; do not open while the file OUTAGE exists."""
    if exists("OUTAGE"):
        raise ConnectionRefusedError("no database")
    copies: Stream[Event] = Stream(os.environ["COPIES"], Event, key=lambda event: event.id)

    async def copy(batch: Batch[Event]) -> None:
        await publish(copies, batch.values, headers=[("copied", b"yes"), ("null", None)])

    yield copy


HANDLERS: Mapping[str, tuple[AnyHandler[Event]] | tuple[AnyHandler[Event], Policy]] = {
    "nothing": (handle_nothing,),
    "recording": (recording, Policy(session_timeout_s=10)),  # some tests kill it and wait for another to take over
    "refusing": (refusing,),
    "steered": (steered,),
    "failing": (failing, Policy(batching=Batching(records=200))),
    "blocking": (blocking,),
    "mendable": (mendable,),
    "quoting": (quoting,),
    "cancelling": (cancelling,),
    "copying": (resource(copying),),
}
