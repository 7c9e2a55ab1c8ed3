import asyncio
import gzip
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import cramjam
import pytest
from aiokafka import codec
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st
from test_error_stacks import letter_of
from test_fetched_batches import PARTITION, Assignment, placed, with_bytes

from apps.chassis.internals import record_batches
from apps.chassis.internals.decompression import decompressed
from apps.chassis.internals.fetched_batches import Fetched, FetchedRecord, OversizedRecord, TooLarge, Unreadable
from apps.chassis.internals.record_batches import Omitted, Part, parts_of
from apps.chassis.internals.record_fetching import POLL_BYTES, FetchResult, PartitionRecords, _bounded, passed_over
from apps.consumer.consuming.decode import sort_out
from contracts.dead_letter import OMITTED_BYTES
from tests.event import EVENTS

Encode = Callable[[bytes], bytes]
Given = tuple[bytes | None, bytes | None]

MB = 1024 * 1024
MEMORY = 64 * MB
"""Bytes that reading may take, of which a fourth is the largest record that is read, twice."""


def raw_snappy(content: bytes) -> bytes:
    return bytes(codec.snappy_encode(content, xerial_compatible=False))


def quick_gzip(content: bytes) -> bytes:
    return gzip.compress(content, 1)


CODECS: dict[str, tuple[int, Encode]] = {
    "gzip": (1, quick_gzip),
    "snappy of Java": (2, codec.snappy_encode),
    "snappy of librdkafka": (2, raw_snappy),
    "lz4": (3, codec.lz4_encode),
    "zstd": (4, codec.zstd_encode),
    "none": (0, bytes),
}
compressed_by = pytest.mark.parametrize("name", CODECS)
really_compressed_by = pytest.mark.parametrize("name", [name for name in CODECS if name != "none"])


def batch_of(*records: Given) -> bytes:
    """Return a batch that is not compressed, with these keys and values."""
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 2**31 - 1)  # noqa: FBT003 - of no transaction
    for offset, (key, value) in enumerate(records):
        builder.append(offset, 1_000 + offset, key, value, [])
    return bytes(builder.build())


def compressed(batch: bytes, name: str) -> bytes:
    number, encode = CODECS[name]
    return with_content(batch, number, encode(batch[61:]))


def with_content(batch: bytes, number: int, content: bytes) -> bytes:
    """Return the batch with these bytes behind its header, which says that the codec of that number made them."""
    header = bytearray(batch[:61])
    struct.pack_into(">i", header, 8, 49 + len(content))
    struct.pack_into(">h", header, 21, number)
    return with_bytes(bytes(header) + content, b"", b"")


def with_count(batch: bytes, count: int) -> bytes:
    return with_bytes(batch[:57] + struct.pack(">i", count) + batch[61:], b"", b"")


def varint(value: int) -> bytes:
    encoded, value = bytearray(), (value << 1) ^ (value >> 63)
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def fetched_result(fetched: bytes, offset: int = 0) -> FetchResult:
    """Return what a client holds of a fetch from an offset on."""
    records = PartitionRecords(PARTITION, Fetched(fetched), (), offset, None, None, True, 1)  # noqa: FBT003 - as aiokafka calls it
    return FetchResult(PARTITION, assignment=Assignment(offset), partition_records=records, backoff=0)


def polls(*fetched: bytes, offset: int = 0) -> Iterator[list[FetchedRecord]]:
    """Yield the records of each poll, until all were read."""
    result = fetched_result(b"".join(fetched), offset)
    while result.has_more():
        yield result.getall(2_000)


def read(*fetched: bytes, offset: int = 0) -> list[FetchedRecord]:
    return [record for records in polls(*fetched, offset=offset) for record in records]


def bytes_of(records: list[FetchedRecord]) -> int:
    return sum(len(record.value or b"") for record in records)


@pytest.mark.slow
@compressed_by
def test_a_batch_of_many_small_records_is_read_in_pieces_however_large_it_is_decompressed(name: str) -> None:
    values = [b"%05d" % number + b" " * 100_000 for number in range(200)]
    batch = compressed(batch_of(*((b"key", value) for value in values)), name)
    del values
    tracemalloc.start()
    try:
        seen = 0
        for records in polls(batch):
            assert bytes_of(records) <= 2 * POLL_BYTES
            for record in records:
                assert (record.offset, record.timestamp, record.key) == (seen, 1_000 + seen, b"key")
                assert record.value == b"%05d" % seen + b" " * 100_000
                seen += 1
        assert seen == 200
        assert tracemalloc.get_traced_memory()[1] < MEMORY + (len(batch) if name == "none" else 0)
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@compressed_by
def test_a_record_that_is_too_large_is_left_out_and_its_neighbours_are_read(name: str) -> None:
    large = bytes(20 * MB)
    batch = compressed(batch_of((b"a", b"before"), (b"large", large), (b"b", b"behind"), (b"last", large)), name)
    behind = placed(batch_of((b"c", b"next batch")), 4)
    found = read(batch, behind)
    assert [(one.offset, one.timestamp, one.key, one.value) for one in found] == [
        (0, 1_000, b"a", b"before"),
        (1, 1_001, b"large", None),
        (2, 1_002, b"b", b"behind"),
        (3, 1_003, b"last", None),
        (4, 1_000, b"c", b"next batch"),
    ]
    assert [type(one) for one in found] == [
        FetchedRecord,
        OversizedRecord,
        FetchedRecord,
        OversizedRecord,
        FetchedRecord,
    ]
    ((header, size),) = found[1].headers
    assert header == OMITTED_BYTES
    assert size is not None
    assert int(size) - len(large) in range(100)
    assert read(batch, behind, offset=2) == found[2:]


def test_a_record_that_is_too_large_is_bad_and_the_reason_says_its_size_and_where_it_stays() -> None:
    (record,) = read(compressed(batch_of((b"key", bytes(20 * MB))), "zstd"))
    good, _, (bad,) = sort_out(EVENTS.decode, [record])
    assert not good
    assert isinstance(bad.error, TooLarge)
    assert "20,971," in str(bad.error)
    assert "stays on events, partition 3" in str(bad.error)


@pytest.mark.parametrize(("first", "later"), [(2**63 - 1, 2**63 - 1), (-(2**63), -(2**63))], ids=["late", "early"])
@pytest.mark.parametrize("bad", ["too large", "a wrong header name"])
def test_a_time_beyond_64_bits_is_the_same_however_a_record_is_read_and_its_dead_letter_can_be_written(
    first: int, later: int, bad: str
) -> None:
    headers = varint(1) + varint(1)
    size, name = (17 * MB, b"n") if bad == "too large" else (3, b"\xff")

    def timed(size: int, name: bytes) -> bytes:
        record = b"\x00" + varint(later) + varint(0) + varint(3) + b"key" + varint(size) + bytes(size)
        record += headers + name + varint(-1)
        batch = with_content(batch_of((b"key", b"value")), 1, quick_gzip(varint(len(record)) + record))
        return with_bytes(batch[:27] + struct.pack(">qq", first, first) + batch[43:], b"", b"")

    (quickly,), (slowly,) = read(timed(3, b"n")), read(timed(size, name))
    assert slowly.timestamp == quickly.timestamp
    _, _, (refused,) = sort_out(EVENTS.decode, [slowly])
    assert asyncio.run(letter_of(refused))


def test_of_a_batch_whose_last_record_is_enormous_no_more_is_decompressed_than_its_beginning() -> None:
    batch = batch_of((b"key", b"good"), (b"key", b""))
    last = varint(10**9) + b"\x00" + varint(1) + varint(1) + varint(3) + b"big" + varint(10**9 - 20)
    first = batch[61 : 61 + 1 + batch[61] // 2]
    decompressed_so_far = 0

    def endless() -> Iterator[bytes]:
        nonlocal decompressed_so_far
        yield first + last
        while True:
            decompressed_so_far += MB
            assert decompressed_so_far < 10 * MB
            yield bytes(MB)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_batches, "decompressed", lambda *_: endless())
        found = read(with_content(batch, 1, b"of a gigabyte"))
    assert [(one.key, one.value) for one in found] == [(b"key", b"good"), (b"big", None)]


@pytest.mark.slow
@really_compressed_by
def test_where_too_much_had_to_be_passed_over_the_rest_of_the_batch_is_left_out(name: str) -> None:
    large, small = (b"large", bytes(17 * MB)), (b"small", b"value")
    batch = compressed(batch_of(small, large, small, large, small, small), name)
    found = list(parts_of(batch, max_skip_bytes=30 * MB))
    assert [type(one) for one in found] == [Part, Omitted, Part, Omitted, Omitted]
    assert [one.rest for one in found if isinstance(one, Omitted)] == [False, False, True]


@pytest.mark.parametrize(
    "content",
    [
        lambda: (3, bytes(cramjam.lz4.compress(bytes(40 * MB)))),  # linked blocks
        lambda: (2, b"\x80\x80\x80\x10" + b"\xfc\xff\xff\xff\x01" + bytes(2**25)),  # one literal of 32 MiB
    ],
    ids=["lz4 with linked blocks", "snappy in one block"],
)
def test_what_cannot_be_decompressed_in_pieces_is_left_out_and_the_partition_goes_on(
    content: Callable[[], tuple[int, bytes]],
) -> None:
    batch = with_content(batch_of((b"a", b"1"), (b"b", b"2")), *content())
    left_out, behind = read(batch, placed(batch_of((b"c", b"3")), 2))
    assert isinstance(left_out, OversizedRecord)
    assert "records from offset 0 to 1" in left_out.detail
    assert (behind.offset, behind.value) == (2, b"3")


def test_a_batch_of_linked_blocks_that_is_small_is_read() -> None:
    batch = batch_of(*((b"key", b"%d" % number + bytes(2_000)) for number in range(1_000)))
    linked = with_content(batch, 3, bytes(cramjam.lz4.compress(batch[61:])))
    assert read(linked) == read(batch)


def gzipped(content: bytes) -> tuple[int, bytes]:
    return 1, quick_gzip(content)


GOOD = batch_of((b"key", b"value"))[61:]
LIES: dict[str, Callable[[], tuple[int, bytes]]] = {
    "snappy of 4 GB": lambda: (2, b"\xff\xff\xff\xff\x0f" + b"a" * 50),
    "snappy without a size": lambda: (2, b"\xff" * 9),
    "snappy with a block of a negative size": lambda: (
        2,
        b"\x82SNAPPY\x00" + struct.pack(">iii", 1, 1, -4) + b"a" * 50,
    ),
    "snappy with a block of 2 GB": lambda: (2, b"\x82SNAPPY\x00" + struct.pack(">iii", 1, 1, 2**31 - 1) + b"a" * 50),
    "snappy with a block that is longer than the batch": lambda: (
        2,
        b"\x82SNAPPY\x00" + struct.pack(">iii", 1, 1, len(raw_snappy(GOOD)) + 1) + raw_snappy(GOOD),
    ),
    "lz4 with a block of 2 GB": lambda: (3, struct.pack("<IBBBI", 0x184D2204, 0x60, 0x70, 0, 2**31 - 1) + b"a" * 50),
    "lz4 without blocks": lambda: (3, struct.pack("<IBBB", 0x184D2204, 0x60, 0x70, 0)),
    "no lz4": lambda: (3, b"no lz4 at all"),
    "gzip cut off": lambda: (1, quick_gzip(bytes(9 * MB))[:-9]),
    "zstd cut off": lambda: (4, codec.zstd_encode(bytes(9 * MB))[:-9]),
    "no zstd": lambda: (4, b"no zstd at all"),
    "no gzip": lambda: (1, b"no gzip at all"),
    "gzip of nothing": lambda: gzipped(b""),
    "an unknown codec": lambda: (7, b"anything"),
    "a record of a negative length": lambda: gzipped(varint(-5) + bytes(9 * MB)),
    "a record that is longer than the batch": lambda: gzipped(varint(15 * MB) + bytes(9 * MB)),
    "a number without an end": lambda: gzipped(b"\xff" * 9 * MB),
    "an enormous record behind its batch": lambda: gzipped(
        varint(2**40) + b"\x00" + varint(0) + varint(2**30) + varint(-1) + bytes(9 * MB)
    ),
}
"""Made when they are used, for no worker needs all of them."""


@pytest.mark.parametrize("lie", LIES)
def test_a_batch_that_lies_about_sizes_cannot_be_read_and_takes_no_memory(lie: str) -> None:
    batch = with_content(batch_of((b"key", b"value")), *LIES[lie]())
    tracemalloc.start()
    try:
        with pytest.raises(Unreadable):
            read(batch)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


def test_content_that_breaks_off_is_damaged_and_the_reason_says_what_is_missing() -> None:
    with pytest.raises(CorruptRecordException, match="expected 4 more bytes, got 0"):
        list(decompressed(*LIES["lz4 without blocks"]()))


@pytest.mark.parametrize("count", [2, 2**31 - 1, 0, -1])
@compressed_by
def test_a_batch_that_lies_about_the_number_of_its_records_cannot_be_read(name: str, count: int) -> None:
    with pytest.raises(Unreadable):
        read(with_count(compressed(batch_of((b"key", b"value")), name), count))


@pytest.mark.slow
def test_many_tiny_records_are_no_more_at_a_time_than_memory_takes() -> None:
    batch = batch_of((None, None))
    record = batch[61:]
    many = with_content(with_count(batch, 1_000_000), 1, quick_gzip(record * 1_000_000))
    many = with_bytes(many[:23] + struct.pack(">i", 999_999) + many[27:], b"", b"")
    result = fetched_result(many, 0)
    assert 0 < len(result.getall()) < 50_000


@given(name=st.sampled_from([*CODECS]), at=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_batch_with_any_byte_changed_is_read_or_cannot_be_read(name: str, at: int, byte: int) -> None:
    batch = bytearray(compressed(batch_of((b"key", bytes(range(256))), (b"other", b"value" * 50)), name))
    position = 61 + at % (len(batch) - 61)
    batch[position] = byte
    try:
        found = read(with_bytes(bytes(batch), b"", b""))
    except Unreadable:
        return
    assert bytes_of(found) <= len(batch) * 1_100


def legacy_batch(content: bytes) -> bytes:
    """Return a gzip batch of the format before Kafka 0.11, with this inside."""
    packed = quick_gzip(content)
    body = struct.pack(">bbqii", 1, 1, 1_000, -1, len(packed)) + packed
    return struct.pack(">qiI", 2, len(body) + 4, zlib.crc32(body)) + body


def legacy_messages(*values: bytes) -> bytes:
    builder = LegacyRecordBatchBuilder(1, 0, 2**30)
    for offset, value in enumerate(values):
        builder.append(offset, 1_000, b"key", value)
    return bytes(builder.build())


def test_a_compressed_batch_of_an_old_format_is_read() -> None:
    found = read(legacy_batch(legacy_messages(b"a", b"b", b"c")))
    assert [(one.offset, one.key, one.value) for one in found] == [
        (n, b"key", v) for n, v in enumerate((b"a", b"b", b"c"))
    ]


def test_a_compressed_batch_of_an_old_format_that_is_too_large_is_left_out() -> None:
    (found,) = read(legacy_batch(legacy_messages(b"a", bytes(20 * MB), b"c")))
    assert isinstance(found, OversizedRecord)
    assert "records from offset 0 to 2" in found.detail


@pytest.mark.parametrize("size", [-12, 0, 2**31 - 1])
def test_a_batch_of_an_old_format_whose_messages_lie_about_their_size_cannot_be_read(size: int) -> None:
    with pytest.raises(Unreadable):
        read(legacy_batch(struct.pack(">qi", 0, size) + legacy_messages(b"a")[12:]))


@pytest.mark.anyio
async def test_the_partitions_of_a_poll_share_its_bound() -> None:
    batch = compressed(batch_of(*((b"key", bytes(MB)) for _ in range(7))), "zstd")
    results = [fetched_result(batch) for _ in range(10)]

    async def poll(*_: object) -> list[FetchedRecord]:
        return [record for one in results if one.has_more() for record in one.getall()]

    bounded = cast("Any", _bounded(poll))
    taken = [bytes_of(await bounded(SimpleNamespace(), None)) for _ in range(12)]
    assert max(taken) <= 2 * POLL_BYTES
    assert sum(taken) == 10 * 7 * MB


@pytest.mark.slow
@pytest.mark.anyio
async def test_while_a_poll_passes_over_what_stands_before_its_offset_other_tasks_go_on() -> None:
    """A small batch can hold gigabytes of them: heartbeats and probes must not wait for all."""
    batch = compressed(batch_of(*((b"key", bytes(4 * MB)) for _ in range(50))), "zstd")
    result = fetched_result(batch, 49)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def poll(*_: object) -> list[FetchedRecord]:
        return result.getall()

    counting = asyncio.create_task(count_turns())
    bounded = cast("Any", _bounded(poll))
    (found,) = await bounded(SimpleNamespace(), None, 60)
    counting.cancel()
    assert found.offset == 49
    assert turns >= 49 * 4 * MB // POLL_BYTES // 2


@pytest.mark.anyio
async def test_a_poll_that_finds_nothing_to_return_in_its_time_goes_on_at_the_next_one() -> None:
    batch = compressed(batch_of(*((b"key", bytes(4 * MB)) for _ in range(20))), "zstd")
    result = fetched_result(batch, 19)

    async def poll(*_: object) -> list[FetchedRecord]:
        return result.getall() if result.has_more() else []

    bounded = cast("Any", _bounded(poll))
    consumer: Any = SimpleNamespace(_fetcher=SimpleNamespace())
    assert passed_over(consumer) is None
    before = time.monotonic()
    assert await bounded(consumer._fetcher, None, 0) == []
    passed = passed_over(consumer)
    assert passed is not None
    assert passed[:2] == (PARTITION, 19)
    assert before <= passed.at <= time.monotonic()
    polled = [await bounded(consumer._fetcher, None, 0) for _ in range(20)]
    assert [record.offset for found in polled for record in found] == [19]
    assert passed_over(consumer) is None
