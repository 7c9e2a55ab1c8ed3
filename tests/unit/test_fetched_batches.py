import gc
import gzip
import inspect
import random
import struct
import sys
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.record.control_record import ABORT_MARKER, COMMIT_MARKER
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

from apps.chassis.internals.fetched_batches import Batches, Fetched, Unreadable
from apps.chassis.internals.record_fetching import FetchResult, PartitionRecords, read_fetched_fast

Header = tuple[str, bytes | None]
Seen = tuple[str, int, int, int, bytes | None, bytes | None, list[Header]]

PARTITION = TopicPartition("events", 3)
COMMITTED, UNCOMMITTED = 1, 0
THEIRS: Any = Batches.__base__  # by its name every application of this process has put ours
POLL = getattr(fetcher.Fetcher.fetched_records, "__wrapped__", fetcher.Fetcher.fetched_records)
THEIR_RESULT: Any = FetchResult.__base__


def batch_of(*headers: list[Header], compression: int = 0) -> bytes:
    """Return a batch with a record for each list of headers."""
    builder = DefaultRecordBatchBuilder(2, compression, False, -1, -1, -1, 2**20)  # noqa: FBT003 - not transactional
    for offset, of_record in enumerate(headers):
        builder.append(offset, 1_000 + offset, b"key", b"value %d" % offset, of_record)
    return bytes(builder.build())


def batch_at(base: int, size: int, deltas: list[int], *, producer: int = -1) -> bytes:
    """Return a batch of `size` offsets with records at some of them; the others were compacted away.

    Those of a producer with an id are of a transaction.
    """
    builder = DefaultRecordBatchBuilder(2, 0, producer > 0, producer, 0, 0, 2**20)
    for delta in deltas or [0]:
        builder.append(delta, 1_000 + delta, None, b"value" if delta % 3 else None, [("delta", b"%d" % delta)])
    batch = bytearray(builder.build())
    struct.pack_into(">i", batch, 23, size - 1)
    if not deltas:  # it has no records any more
        del batch[61:]
        struct.pack_into(">i", batch, 8, 49)
        struct.pack_into(">i", batch, 57, 0)
    return with_bytes(placed(bytes(batch), base), b"", b"")


def mark_at(base: int, kind: Any, producer: int) -> bytes:  # noqa: ANN401 - aiokafka ships no types
    """Return what ends a transaction: a control batch (KIP-98)."""
    builder = DefaultRecordBatchBuilder(2, 0, True, producer, 0, 0, 2**20)  # noqa: FBT003 - transactional
    builder.append(0, 1_000, struct.pack(">hh", kind.version, kind.type_), b"\x00" * 6, [])
    batch = bytearray(placed(bytes(builder.build()), base))
    batch[22] |= 0x20
    return with_bytes(bytes(batch), b"", b"")


def placed(batch: bytes, base: int) -> bytes:
    """Return a batch with another first offset, which its checksum does not cover."""
    return struct.pack(">q", base) + batch[8:]


def with_bytes(batch: bytes, old: bytes, new: bytes) -> bytes:
    """Return the batch with some of its bytes changed, and its checksum."""
    changed = bytearray(batch.replace(old, new) if old else batch)
    struct.pack_into(">I", changed, 17, calc_crc32c(bytes(changed[21:])))
    return bytes(changed)


def gzipped(batch: bytes) -> bytes:
    """Return the batch with its records compressed, which begin at byte 61."""
    begin, records = bytearray(batch[:61]), gzip.compress(batch[61:])
    struct.pack_into(">i", begin, 8, 49 + len(records))
    struct.pack_into(">h", begin, 21, 1)
    return with_bytes(bytes(begin) + records, b"", b"")


class Assignment:
    """What a client knows of its partition: how far it was consumed."""

    active = True

    def __init__(self, position: int) -> None:
        self.state = SimpleNamespace(paused=False, position=position, consumed_to=self.consumed_to)

    def state_value(self, _: TopicPartition) -> SimpleNamespace:
        return self.state

    def consumed_to(self, position: int) -> None:
        self.state.position = position


class Poll:
    """What aiokafka makes of a fetch, by its own reader or by ours, poll by poll."""

    def __init__(
        self,
        fetched: bytes,
        offset: int = 0,
        *,
        aborted: Sequence[tuple[int, int]] = (),
        isolation: int = COMMITTED,
        ours: bool = True,
    ) -> None:
        memory, reader = (Fetched, PartitionRecords) if ours else (MemoryRecords, THEIRS)
        records = reader(PARTITION, memory(fetched), aborted, offset, None, None, True, isolation)  # noqa: FBT003 - as aiokafka calls it
        self._assignment = Assignment(offset)
        result = FetchResult if ours else THEIR_RESULT
        self._result = result(PARTITION, assignment=self._assignment, partition_records=records, backoff=0)

    def records(self, most: int | None = None) -> list[Seen]:
        return [self._seen(one) for one in self._result.getall(most)] if self._result.has_more() else []

    def one(self) -> Seen | None:
        record = self._result.getone()
        return record and self._seen(record)

    def seek(self, offset: int) -> None:
        self._assignment.state.position = offset

    @property
    def position(self) -> int:
        return int(self._assignment.state.position)

    def _seen(self, one: Any) -> Seen:  # noqa: ANN401 - aiokafka ships no types
        return (one.topic, one.partition, one.offset, one.timestamp, one.key, one.value, list(one.headers))


def headers_of(fetched: bytes) -> list[list[Header]]:
    return [headers for *_, headers in Poll(fetched).records()]


def test_a_header_name_that_is_no_utf_8_is_escaped_and_nothing_else_is_changed() -> None:
    headers: list[list[Header]] = [[("a", b"\xff")], [("ZZ", b"ZZ"), ("b", None)], [("größe", b"")], []]
    straight = batch_of(*headers)
    wrong = with_bytes(straight, b"\x04ZZ", b"\x04\xffZ")
    expected = [("events", 3, at, 1_000 + at, b"key", b"value %d" % at, one) for at, one in enumerate(headers)]
    assert Poll(straight).records() == expected
    expected[1] = ("events", 3, 1, 1_001, b"key", b"value 1", [("\\xffZ", b"\xffZ"), ("b", None)])
    behind = placed(straight, 4)
    assert Poll(wrong + behind).records()[:4] == expected
    assert [offset for _, _, offset, *_ in Poll(wrong + behind).records()] == list(range(8))
    assert headers_of(straight + placed(wrong, 4) + placed(straight, 8))[4:8] == [one for *_, one in expected]
    assert Poll(gzipped(wrong)).records() == expected
    assert Poll(wrong, 1).records() == expected[1:]


@pytest.mark.parametrize("wrong", [0, 499, 500, 777, 999])
def test_no_record_is_left_out_or_read_twice_wherever_in_a_long_batch_a_wrong_name_stands(wrong: int) -> None:
    headers: list[list[Header]] = [[("ZZ" if at == wrong else "a", b"")] for at in range(1_000)]
    found = Poll(with_bytes(batch_of(*headers), b"\x04ZZ", b"\x04\xffZ")).records()
    assert [offset for _, _, offset, *_ in found] == list(range(1_000))
    assert [of_record[0][0] for *_, of_record in found] == ["\\xffZ" if at == wrong else "a" for at in range(1_000)]


def test_a_wrong_name_takes_as_many_steps_wherever_in_what_was_fetched_it_stands() -> None:
    wrong = with_bytes(batch_of([("ZZ", b"")]), b"\x04ZZ", b"\x04\xffZ")
    poll = Poll(b"".join(placed(wrong, at) for at in range(200)))
    _, first, *_, last = [steps_of(partial(poll.records, 20)) for _ in range(10)]
    assert first == last


def steps_of(act: Callable[[], object]) -> int:
    """Return how often something calls something of Python's."""
    steps = count()
    sys.setprofile(lambda _, event, __: next(steps) if event == "call" else None)
    try:
        act()
    finally:
        sys.setprofile(None)
    return next(steps)


@pytest.mark.parametrize("compression", range(5))
def test_a_straight_batch_is_read_as_it_was_written_however_it_is_compressed(compression: int) -> None:
    headers: list[list[Header]] = [[("a", b"\xff")], [("größe", None)]] * 600
    assert headers_of(batch_of(*headers, compression=compression)) == headers


def any_log(chance: random.Random) -> tuple[bytes, int, list[tuple[int, int]], int]:
    """Return what was fetched, how many offsets the first batch has, aborted transactions, and the offset behind it."""
    fetched, offset, aborted, first_size = b"", 0, [], 0
    open_since: dict[int, int] = {}
    for _ in range(chance.randint(1, 8)):
        if open_since and chance.random() < 0.3:
            producer, begin = open_since.popitem()
            if chance.random() < 0.5:
                aborted.append((producer, begin))
                fetched += mark_at(offset, ABORT_MARKER, producer)
            else:
                fetched += mark_at(offset, COMMIT_MARKER, producer)
            offset += 1
            continue
        size = chance.choice([1, 2, 30, 499, 500, 501, 1_200])
        producer = chance.choice([-1, 7, 8])
        deltas = sorted(chance.sample(range(size), chance.choice([0, 1, size, size // 2])))
        fetched += batch_at(offset, size, deltas, producer=producer)
        if producer > 0:
            open_since.setdefault(producer, offset)
        first_size = first_size or size
        offset += size
    return fetched, first_size, aborted, offset


@pytest.mark.slow
def test_records_and_positions_are_those_of_aiokafka_whatever_was_fetched_and_however_many_are_taken_at_a_time() -> (
    None
):
    chance = random.Random(2026)
    for _ in range(300):
        fetched, first_size, aborted, end = any_log(chance)
        options: dict[str, Any] = {"aborted": aborted, "isolation": chance.choice([COMMITTED, UNCOMMITTED])}
        start = chance.randrange(first_size)
        ours = Poll(fetched, start, **options)
        theirs = Poll(fetched, start, **options, ours=False)
        while ours.position < end:
            most = chance.choice([1, 7, 500, 2_000, None])
            expected = theirs.records(most)
            assert ours.records(most) == expected
            assert ours.position > (expected[-1][2] if expected else start)
        assert theirs.records() == ours.records() == []
        assert theirs.position == end


@pytest.mark.parametrize("before", [batch_at(0, 5, [0, 1, 2, 3, 4]), batch_at(0, 5, []), mark_at(0, COMMIT_MARKER, 7)])
def test_whole_batches_before_the_asked_offset_do_not_move_the_position_back(before: bytes) -> None:
    poll = Poll(before + batch_at(7, 3, [0, 1, 2]), 8)
    assert [record[2] for record in poll.records(1)] == [8]
    assert poll.position == 9
    poll = Poll(before + damaged(batch_at(7, 3, [0, 1, 2])), 8)
    assert poll.records() == []
    assert poll.position == 8
    with pytest.raises(Unreadable, match="events-3 offset 8"):
        poll.records()


def test_a_transaction_that_was_aborted_before_the_asked_offset_takes_nothing_behind_it_away() -> None:
    fetched = batch_at(0, 3, [0, 1, 2], producer=7) + mark_at(3, ABORT_MARKER, 7) + batch_at(4, 2, [0, 1], producer=7)
    assert [record[2] for record in Poll(fetched, 5, aborted=[(7, 0)]).records()] == [5]


def test_records_can_be_taken_one_by_one() -> None:
    poll = Poll(batch_of([], [], []))
    assert [one and one[2] for one in (poll.one(), poll.one(), poll.one(), poll.one())] == [0, 1, 2, None]
    assert poll.position == 3


def test_records_of_the_format_before_headers_are_read() -> None:
    builder = LegacyRecordBatchBuilder(1, 0, 2**16)
    for offset in range(3):
        builder.append(offset, 1_000 + offset, b"key", b"value")
    found = Poll(bytes(builder.build())).records()
    assert found == [("events", 3, offset, 1_000 + offset, b"key", b"value", []) for offset in range(3)]


@pytest.mark.parametrize("codec", [0, 1])
def test_a_record_of_the_format_before_timestamps_says_that_it_has_none(codec: int) -> None:
    builder = LegacyRecordBatchBuilder(0, codec, 2**16)
    builder.append(0, None, b"key", b"value")
    assert Poll(bytes(builder.build())).records() == [("events", 3, 0, -1, b"key", b"value", [])]


def damaged(batch: bytes) -> bytes:
    """Return the batch with a letter of a value changed, which only its checksum tells."""
    return batch.replace(b"value", b"velue", 1)


def followed_by(batch: bytes, more: bytes) -> bytes:
    """Return the compressed batch with bytes behind what was compressed: Java passes over them."""
    return with_bytes(batch[:8] + struct.pack(">i", len(batch) - 12 + len(more)) + batch[12:] + more, b"", b"")


@pytest.mark.parametrize("compression", range(5))
def test_what_stands_before_a_batch_that_cannot_be_read_is_handed_out_and_the_position_stays_before_it(
    compression: int,
) -> None:
    straight = batch_of([], [], compression=compression)
    unreadable = placed(followed_by(straight, b"more") if compression else damaged(straight), 2)
    behind = placed(straight, 4)
    poll = Poll(straight + unreadable + behind)
    assert [record[2] for record in poll.records()] == [0, 1]
    assert poll.records() == []
    assert poll.position == 2
    poll = Poll(unreadable + behind, 2)
    assert poll.records() == []
    with pytest.raises(Unreadable, match="events-3 offset 2") as raised:
        poll.records()
    assert (raised.value.partition, raised.value.start, raised.value.stop) == (3, 2, 4)
    assert poll.records() == []
    assert poll.position == 2


def test_what_was_fetched_is_freed_at_once_when_nobody_wants_it_any_more() -> None:
    memory = Fetched(batch_of([], []))
    kept = weakref.ref(memory)
    records = PartitionRecords(PARTITION, memory, (), 0, None, None, True, COMMITTED)  # noqa: FBT003 - as aiokafka calls it
    del memory
    gc.disable()
    try:
        assert next(records).offset == next(iter(records)).offset - 1 == 0
        assert kept() is not None
        del records
        assert kept() is None
    finally:
        gc.enable()


def test_what_cannot_be_read_is_no_error_of_who_seeks_elsewhere() -> None:
    poll = Poll(damaged(batch_of([])))
    assert poll.records() == []
    poll.seek(1)
    assert poll.records() == []


def test_every_consumer_of_a_process_reads_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "MemoryRecords", fetcher.MemoryRecords)
    monkeypatch.setattr(fetcher, "PartitionRecords", fetcher.PartitionRecords)
    monkeypatch.setattr(fetcher, "FetchResult", fetcher.FetchResult)
    monkeypatch.setattr(fetcher.Fetcher, "fetched_records", POLL)
    monkeypatch.setattr(fetcher.Fetcher, "close", inspect.unwrap(fetcher.Fetcher.close))
    read_fetched_fast()
    read_fetched_fast()
    assert fetcher.Fetcher.fetched_records.__wrapped__ is POLL
    assert not hasattr(fetcher.Fetcher.close.__wrapped__, "__wrapped__")
    names = fetcher.Fetcher._proc_fetch_request.__code__.co_names  # an upgrade may call others
    assert "getall" in POLL.__code__.co_names
    assert {"MemoryRecords", "PartitionRecords", "FetchResult"} <= set(names)
    assert (fetcher.MemoryRecords, fetcher.PartitionRecords) == (Fetched, PartitionRecords)
    assert fetcher.FetchResult is FetchResult
