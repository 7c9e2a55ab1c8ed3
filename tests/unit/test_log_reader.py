import asyncio
from collections.abc import Mapping, Sequence
from typing import cast
from unittest.mock import Mock

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from samples import LONG, Stored, everything_else_has_run, stored_person

from apps.chassis.kafka import client_options
from apps.chassis.settings import Settings
from apps.consumer import log_reader
from apps.consumer.log_reader import LogReader, _start

pytestmark = pytest.mark.anyio

TOPIC = "people"
A_WHILE = 0.05
"""Seconds: a limit that is to pass."""


class FakeClient:
    """Has the records of one partition; behind them nothing comes. `frozen` is one that does not connect."""

    def __init__(self, records: Sequence[Stored] = (), *, frozen: bool = False) -> None:
        self.records = list(records)
        self.connects = asyncio.Event()
        if not frozen:
            self.connects.set()
        self.connected = self.stopped = False
        self.at = 0

    async def start(self) -> None:
        await self.connects.wait()
        self.connected = True

    async def stop(self) -> None:
        self.stopped = True

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        pass

    def seek(self, _: TopicPartition, offset: int) -> None:
        self.at = offset

    def pause(self, *_: TopicPartition) -> None:
        pass

    async def position(self, _: TopicPartition) -> int:
        return self.at

    async def getmany(self, partition: TopicPartition, **_: int) -> Mapping[TopicPartition, list[Stored]]:
        found = [record for record in self.records if record.offset >= self.at][:1]
        if not found:
            await asyncio.sleep(A_WHILE / 10)
            return {}
        self.at = found[0].offset + 1
        return {partition: found}


@pytest.fixture
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader, "SILENCE", A_WHILE)
    monkeypatch.setattr(log_reader, "PATIENCE", A_WHILE)


async def read(client: FakeClient, stop: int) -> list[int]:
    """Return the offsets from 0 up to `stop` that are read of partition 0."""
    reader = LogReader(client_options(Settings(), "consumer"), TOPIC)
    reader._new_consumer = Mock(return_value=client)  # type: ignore[method-assign]  # which makes real ones
    async with asyncio.timeout(LONG):
        return [record.offset async for records in reader.read({0: (0, stop)}) for record in records]


async def test_what_is_asked_for_is_read_and_no_more() -> None:
    client = FakeClient([stored_person(offset) for offset in (0, 1, 2, 5, 6)])
    assert await read(client, 6) == [0, 1, 2, 5]
    assert client.stopped


@pytest.mark.usefixtures("_no_patience")
@pytest.mark.parametrize("frozen", [True, False])
async def test_reading_is_given_up_when_nothing_comes_any_more(*, frozen: bool) -> None:
    client = FakeClient([stored_person(0)], frozen=frozen)
    with pytest.raises(TimeoutError):
        await read(client, 2)
    assert client.stopped


async def test_who_is_cancelled_while_it_connects_leaves_when_it_has() -> None:
    client = FakeClient(frozen=True)
    starting = asyncio.create_task(_start(cast(AIOKafkaConsumer, client)))
    await everything_else_has_run()
    starting.cancel()
    await everything_else_has_run()
    assert not starting.done()
    client.connects.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert client.connected
