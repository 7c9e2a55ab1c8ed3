import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaConnectionError
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from samples import Stored

from apps.chassis.cluster import Cluster
from apps.chassis.kafka import client_options
from apps.chassis.settings import Settings
from apps.consumer import redrive
from apps.consumer.log_reader import LogReader
from apps.consumer.redrive import Marks, Redriven, Redriver, oldest, size_sent_back
from contracts.dead_letter import DeadLetter, sent_back

pytestmark = pytest.mark.anyio

TOPIC, DEAD = "people", "people-dlt"


def a_letter(value: bytes | None = b"bad", headers: tuple[tuple[str, bytes | None], ...] = ()) -> DeadLetter:
    return DeadLetter(b"key", value, headers, TOPIC, 0, 7, 1_700_000_000_000, "group", "ValueError", "wrong", 3)


def stored_letter(offset: int, partition: int = 0, timestamp: int = 0, value: bytes = b"bad") -> Stored:
    headers = a_letter(value).all_headers()
    return Stored(partition, offset, timestamp, b"key", value, headers, DEAD)


class FakeDeadLetters:
    """The dead letters of a topic, by partition."""

    topic = DEAD

    def __init__(self, *partitions: Sequence[Stored]) -> None:
        self.partitions = partitions

    async def offsets(self, partitions: int) -> tuple[dict[int, int], dict[int, int]]:
        return dict.fromkeys(range(partitions), 0), {n: len(self.partitions[n]) for n in range(partitions)}

    async def some(self, ranges: dict[int, tuple[int, int]], most_bytes: int) -> tuple[list[Stored], dict[int, int]]:
        ((partition, (start, _)),) = ranges.items()
        assert most_bytes > 0
        return [self.partitions[partition][start]], {partition: start + 1}


class Bench:
    """A redriver of dead letters whose transactions only note what they send back."""

    def __init__(self, *partitions: Sequence[Stored], monkeypatch: pytest.MonkeyPatch) -> None:
        options = client_options(Settings(), "consumer")
        self.cluster = Cluster(options, [])
        self.cluster.partitions |= {TOPIC: 1, DEAD: len(partitions)}
        dead = cast(LogReader, FakeDeadLetters(*partitions))
        self.redriver = Redriver(options, self.cluster, dead, TOPIC, "group")
        self.transactions: list[list[tuple[int, int]]] = []
        self.fails_from = 1_000
        monkeypatch.setattr(self.redriver, "_fenced", self._fenced)
        monkeypatch.setattr(self.redriver, "_send_back", self._send_back)

    @asynccontextmanager
    async def _fenced(self) -> AsyncIterator[tuple[Any, Marks]]:
        yield None, Marks([], {})

    async def _send_back(self, _: object, chosen: Sequence[Stored], marks: Marks) -> None:
        if len(self.transactions) >= self.fails_from:
            raise KafkaConnectionError("gone")
        self.transactions.append([(record.partition, record.offset) for record in chosen])
        for record in chosen:
            marks.add(record)


def places(columns: Sequence[tuple[Sequence[Stored], bool]], limit: int) -> tuple[list[tuple[int, int]], bool]:
    records, more = oldest(columns, limit)
    return [(record.partition, record.offset) for record in records], more


def column(partition: int, *times: int) -> list[Stored]:
    return [stored_letter(offset, partition, time) for offset, time in enumerate(times)]


def test_the_oldest_of_all_partitions_come_first() -> None:
    columns = [(column(0, 10, 30, 50), False), (column(1, 20, 40), False)]
    assert places(columns, 4) == ([(0, 0), (1, 0), (0, 1), (1, 1)], True)
    assert places(columns, 5) == ([(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)], False)


def test_within_a_partition_the_order_is_kept_whatever_the_times_say() -> None:
    assert places([(column(0, 10, 5, 30), False), (column(1, 7), False)], 9)[0] == [(1, 0), (0, 0), (0, 1), (0, 2)]


def test_what_may_be_older_in_a_partition_that_was_not_read_to_its_end_is_not_passed() -> None:
    columns = [(column(0, 10, 30), True), (column(1, 20, 40), False)]
    assert places(columns, 9) == ([(0, 0), (1, 0), (0, 1)], True)
    assert places([(column(0, 10, 5), True)], 9) == ([(0, 0), (0, 1)], True)


@pytest.mark.parametrize("size", [0, 50, 100, 9_000, 1_000_000])
def test_the_size_of_what_is_sent_back_is_known_to_the_byte(size: int) -> None:
    letter = a_letter(b"x" * size, (("h", None), ("long", b"y" * size)))
    batch = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=1,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=16_384,
    )
    assert batch.append(0, 1_700_000_000_000, letter.key, letter.value, sent_back(letter))
    assert size_sent_back(letter) == len(batch.build())


async def test_what_the_topic_would_not_take_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench([stored_letter(0, value=b"x" * 1_000), stored_letter(1)], monkeypatch=monkeypatch)
    size = size_sent_back(a_letter(b"x" * 1_000))
    bench.cluster.configs[TOPIC] = {"max.message.bytes": str(size)}
    assert not bench.redriver.is_held(a_letter(b"x" * 1_000))
    bench.cluster.configs[TOPIC] = {"max.message.bytes": str(size - 1)}
    assert bench.redriver.is_held(a_letter(b"x" * 1_000))
    assert await bench.redriver.redrive(10) == ([Redriven(0, 1)], False)


async def test_many_large_dead_letters_are_sent_back_in_several_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redrive, "MOST_BYTES", 2 * 2 * (100 + len(b"key")))
    large = b"x" * 100
    bench = Bench(
        [stored_letter(n, 0, n, large) for n in range(5)],
        [stored_letter(n, 1, n, large) for n in range(3)],
        monkeypatch=monkeypatch,
    )
    done, more = await bench.redriver.redrive(7)
    assert [len(transaction) for transaction in bench.transactions] == [4, 3]
    sent = list(chain.from_iterable(bench.transactions))
    assert [(one.partition, one.offset) for one in done] == sent
    assert len(set(sent)) == 7
    assert more


async def test_a_redrive_that_fails_in_the_middle_tells_what_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redrive, "MOST_BYTES", 1)
    bench = Bench([stored_letter(n) for n in range(3)], monkeypatch=monkeypatch)
    bench.fails_from = 2
    assert await bench.redriver.redrive(3) == ([Redriven(0, 0), Redriven(0, 1)], True)
    bench = Bench([stored_letter(0)], monkeypatch=monkeypatch)
    bench.fails_from = 0
    with pytest.raises(KafkaConnectionError):
        await bench.redriver.redrive(3)


async def test_reading_the_marks_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redrive, "DEADLINE", 0.05)
    bench = Bench([], monkeypatch=monkeypatch)

    async def for_ever() -> Marks:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(bench.redriver, "_read_marks", for_ever)
    with pytest.raises(TimeoutError):
        await bench.redriver.marks()
