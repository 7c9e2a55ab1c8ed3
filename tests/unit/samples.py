"""Events and records that tests start from, and how they wait for something to happen."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
from aiokafka import TopicPartition

from contracts.dead_letter import DeadLetter, Header, sent_back
from contracts.stream import encode
from tests import batches
from tests.event import Event

LONG = 10.0
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
    return sent_back(DeadLetter(b"key", b"", (), topic, 0, 0, 0, group, None, None, 1))


class Client:
    """A group member whose positions and commits are dictionaries; `error` is raised by the next commit."""

    def __init__(self, positions: Mapping[int, int] | None = None) -> None:
        self.positions = dict(positions or {})
        self.commits: dict[int, tuple[int, str]] = {}
        self.first: dict[int, int] = {}
        self.errors: list[Exception] = []
        self._coordinator = SimpleNamespace(member_id="member", generation=1)

    def lose_session(self) -> None:
        """Be no member any more, as aiokafka is until it has joined again."""
        self._coordinator = SimpleNamespace(member_id="", generation=-1)

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition("events", partition) for partition in self.positions}

    def last_poll_timestamp(self, _: TopicPartition) -> int:
        return 1

    def paused(self) -> set[TopicPartition]:
        return set()

    def last_stable_offset(self, _: TopicPartition) -> int | None:
        return None

    async def position(self, tp: TopicPartition) -> int:
        return self.positions[tp.partition]

    async def beginning_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: self.first.get(tp.partition, 0) for tp in tps}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.positions[partition.partition] = offset

    async def commit(self, offsets: Mapping[TopicPartition, tuple[int, str]]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.commits |= {tp.partition: commit for tp, commit in offsets.items()}


async def until(happened: Callable[[], object]) -> None:
    """Let everything else run until something has happened."""
    async with asyncio.timeout(LONG):
        while not happened():  # noqa: ASYNC110 - what is waited for tells nobody when it happens
            await asyncio.sleep(0)


async def everything_else_has_run() -> None:
    """Let every task go on until it waits for the test."""
    for _ in range(50):
        await asyncio.sleep(0)
