"""Events and records that tests start from, and how they wait for something to happen."""

import asyncio
from collections.abc import Callable
from itertools import chain, repeat
from typing import Any

import msgspec

from contracts.dead_letter import DeadLetter, Header, redrive_headers
from contracts.stream import encode
from tests import batches
from tests.event import Event

LONG = 30.0
"""Seconds after which what a test waits for counts as never to come; no test waits so long when all is well."""

Stored = batches.Stored

EVENT = Event(id="0b0d5c4e-6b3f-4a55-9a43-0c8f5d1c7f11", number=36, text="Ada Lovelace")


def an_event(**fields: Any) -> Event:  # noqa: ANN401 - of any field
    return msgspec.structs.replace(EVENT, **fields)


def fields_of_an_event(**fields: Any) -> dict[str, Any]:  # noqa: ANN401 - right or wrong ones
    return {**msgspec.to_builtins(EVENT), **fields}


def as_json(**fields: Any) -> bytes:  # noqa: ANN401 - right or wrong ones
    return msgspec.json.encode(fields_of_an_event(**fields))


def stored_event(offset: int, **fields: Any) -> Stored:  # noqa: ANN401 - of any field
    event = an_event(**{"id": f"event-{offset}", **fields})
    return Stored(offset=offset, key=event.id.encode(), value=encode(event))


def redriven_headers(group: str | None, topic: str = "events") -> list[Header]:
    """Return the headers of a record that was sent back for a group."""
    return redrive_headers(DeadLetter(b"key", b"", (), topic, 0, 0, 0, group, None, None, 1))


async def until(happened: Callable[[], object]) -> None:
    """Let everything else run until something has happened: what waits for a timer takes no processor meanwhile."""
    pauses = chain(repeat(0.0, 200), repeat(0.001))
    async with asyncio.timeout(LONG):
        while not happened():  # noqa: ASYNC110 - what is waited for tells nobody when it happens
            await asyncio.sleep(next(pauses))


async def everything_else_has_run() -> None:
    """Let every task go on until it waits for the test."""
    for _ in range(50):
        await asyncio.sleep(0)
