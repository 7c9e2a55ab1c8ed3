import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError
from aiokafka.structs import OffsetAndTimestamp
from samples import LONG, Stored, everything_else_has_run, stored_event

from apps.chassis.http.problems import to_problem
from apps.chassis.internals.record_fetching import PassedOver
from apps.chassis.kafka.client_journal import ClientJournal
from apps.chassis.kafka.clients import client_options
from apps.chassis.kafka.errors import TooDeep
from apps.chassis.kafka.log_reader import LogReader, ReadTimeouts
from apps.chassis.settings import Settings

pytestmark = pytest.mark.anyio

TOPIC = "events"
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
        self.assigned: list[Sequence[TopicPartition]] = []

    def unsubscribe(self) -> None:
        pass

    async def start(self) -> None:
        await self.connects.wait()
        self.connected = True

    async def stop(self) -> None:
        self.stopped = True

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        self.assigned.append(partitions)

    def seek(self, _: TopicPartition, offset: int) -> None:
        self.at = offset

    def pause(self, *_: TopicPartition) -> None:
        pass

    async def position(self, _: TopicPartition) -> int:
        return self.at

    async def offsets_for_times(self, times: Mapping[TopicPartition, int]) -> Mapping[TopicPartition, Any]:
        """Return the first record at or after a time, as Kafka does."""
        places = [OffsetAndTimestamp(record.offset, record.timestamp) for record in self.records]
        return {tp: next((one for one in places if one.timestamp >= time), None) for tp, time in times.items()}

    async def getmany(self, partition: TopicPartition, **_: int) -> Mapping[TopicPartition, list[Stored]]:
        found = [record for record in self.records if record.offset >= self.at][:1]
        if not found:
            await asyncio.sleep(A_WHILE / 10)
            return {}
        self.at = found[0].offset + 1
        return {partition: found}


def reader_of(client: FakeClient, **timeouts: float) -> LogReader:
    reader = LogReader(client_options(Settings(), "consumer"), TOPIC, timeouts=ReadTimeouts(**timeouts))
    reader._new_consumer = Mock(return_value=client)  # type: ignore[method-assign]  # which makes real ones
    return reader


async def read(client: FakeClient, stop: int, **timeouts: float) -> list[int]:
    """Return the offsets from 0 up to `stop` that are read of partition 0."""
    reader = reader_of(client, **timeouts)
    async with asyncio.timeout(LONG):
        return [record.offset async for records in reader.read({0: (0, stop)}) for record in records]


async def test_a_client_that_has_nothing_to_read_is_assigned_nothing_as_it_would_never_read_again() -> None:
    client = FakeClient()
    assert await reader_of(client).timestamps({0: (3, 3)}) == {}
    assert client.connected
    assert client.assigned == []


async def test_the_first_record_that_is_dated_after_a_time_is_found_and_not_one_of_that_time() -> None:
    client = FakeClient([replace(stored_event(offset), timestamp=10 * offset) for offset in range(4)])
    assert await reader_of(client).dated_after({0: 19}) == {0: (2, 20)}
    assert await reader_of(client).dated_after({0: 20}) == {0: (3, 30)}
    assert await reader_of(client).dated_after({0: 30}) == {}


async def test_what_is_asked_for_is_read_and_no_more() -> None:
    client = FakeClient([stored_event(offset) for offset in (0, 1, 2, 5, 6)])
    assert await read(client, 6) == [0, 1, 2, 5]
    assert client.stopped


@pytest.mark.parametrize("frozen", [True, False])
async def test_reading_is_given_up_when_nothing_comes_any_more(*, frozen: bool) -> None:
    client = FakeClient([stored_event(0)], frozen=frozen)
    with pytest.raises(TimeoutError):
        await read(client, 2, silence_s=A_WHILE, call_s=A_WHILE)
    assert client.stopped


class PassingClient(FakeClient):
    """Its polls pass over records and return none: since now, or as one did for another call."""

    def __init__(self, seconds_ago: float) -> None:
        super().__init__()
        passed = PassedOver(TopicPartition(TOPIC, 0), 7, time.monotonic() - seconds_ago)
        self._fetcher = SimpleNamespace(passes_over=passed)

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(partitions, 9)

    async def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)


@pytest.mark.parametrize(("seconds_ago", "error"), [(-LONG, TooDeep), (LONG, TimeoutError)], ids=["now", "before"])
async def test_kafka_is_not_blamed_for_a_record_that_stands_too_deep_in_a_batch(
    seconds_ago: float, error: type[Exception]
) -> None:
    with pytest.raises(error) as raised:
        await reader_of(PassingClient(seconds_ago), record_s=A_WHILE).record(0, 7)
    assert ("events-0 offset 7 cannot be read within 0.05 s" in str(raised.value)) == (error is TooDeep)
    assert (to_problem(raised.value).status_code == 502) == (error is TooDeep)
    with pytest.raises(error):
        await reader_of(PassingClient(seconds_ago), search_s=A_WHILE).newest({0: 9}, lambda _: True, 1)


async def test_who_is_cancelled_while_it_connects_leaves_when_it_has() -> None:
    client = FakeClient(frozen=True)
    starting = asyncio.create_task(reader_of(client)._start(cast(AIOKafkaConsumer, client)))
    await everything_else_has_run()
    starting.cancel()
    await everything_else_has_run()
    assert not starting.done()
    client.connects.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert client.connected


class FetchedClient(PassingClient):
    """Has fetched all of its records before."""

    def __init__(self, records: int) -> None:
        super().__init__(LONG)
        self.records = [stored_event(offset) for offset in range(records)]


@pytest.mark.parametrize("reading", ["read", "some", "newest"])
async def test_others_have_their_turns_while_what_was_fetched_before_is_read(reading: str) -> None:
    reader, turns = reader_of(FetchedClient(9)), itertools.count()

    async def take_turns() -> None:
        for _ in turns:
            await asyncio.sleep(0)

    async def read_all() -> int:
        if reading == "read":
            return len([records async for records in reader.read({0: (0, 9)})])
        if reading == "some":
            return len((await reader.some({0: (0, 9)}, 1_000_000))[0])
        return len((await reader.newest({0: 9}, lambda _: True, 9)).records)

    other = asyncio.create_task(take_turns())
    assert await read_all() == 9
    assert next(turns) >= 9
    other.cancel()


class FollowedClient(FakeClient):
    """Has no records, and was last answered when it says."""

    def __init__(self) -> None:
        super().__init__()
        self.answered = 1

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition(TOPIC, 0)}

    def last_poll_timestamp(self, _: TopicPartition) -> int:
        return self.answered

    async def getmany(self, *_: TopicPartition, **__: int) -> Mapping[TopicPartition, list[Stored]]:
        await asyncio.sleep(0)
        return {}


async def test_following_ends_when_a_partition_is_not_answered_and_goes_on_while_a_quota_explains_it() -> None:
    client = FollowedClient()
    reader = reader_of(client, answered_within_s=A_WHILE, cut_off_after_s=2 * A_WHILE)
    options = reader._options
    async with aclosing(reader.follow({0: 0})) as followed, asyncio.timeout(LONG):
        assert await anext(followed) == []
        client.answered += 1
        assert await anext(followed) == []
        options["client_id"].journal.throttled(1, LONG)
        await asyncio.sleep(2 * A_WHILE)  # so that the last answer is old
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(followed), 4 * A_WHILE)  # nothing was read, and it is not given up
    options["client_id"].journal = ClientJournal()
    with pytest.raises(KafkaConnectionError, match="was not read for"):
        await asyncio.wait_for(anext(some async for some in reader.follow({0: 0}) if some), LONG)
