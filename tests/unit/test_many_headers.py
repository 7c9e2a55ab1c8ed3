"""Records whose headers are many: they take far more memory than bytes."""

import gc
import struct
import tracemalloc

import pytest
from samples import Stored
from test_error_stacks import letter_of
from test_fetched_batches import with_bytes
from test_large_batches import (
    CODECS,
    MEMORY,
    compressed_by,
    fetched_result,
    polls,
    read,
    varint,
    with_content,
    with_count,
)
from test_large_batches import batch_of as batch_of_values

from apps.chassis.internals.fetched_batches import OversizedRecord, TooLarge
from apps.chassis.internals.record_batches import MAX_HEADERS
from apps.chassis.internals.record_fetching import POLL_BYTES
from apps.consumer.consuming.dead_letters import BadRecord
from apps.consumer.consuming.decode import sort_out
from contracts.dead_letter import OMITTED_BYTES, is_omitted
from contracts.record import memory_of, size_of
from tests.event import EVENTS

SMALLEST = b"\x02a\x00"
"""A header `a` with an empty value."""


def batch_of(*headers: int, name: str = "none", header: bytes = SMALLEST) -> bytes:
    """Return a batch with a record for each number of headers."""
    content = bytearray()
    for delta, count in enumerate(headers):
        record = b"\x00" + varint(delta) * 2 + b"\x06key" + b"\x0avalue" + varint(count) + header * count
        content += varint(len(record)) + record
    whole = with_count(batch_of_values((b"key", b"value")), len(headers))
    whole = whole[:23] + struct.pack(">i", len(headers) - 1) + whole[27:]
    codec, encode = CODECS[name]
    return with_content(with_bytes(whole, b"", b""), codec, encode(bytes(content)))


@pytest.mark.slow
@pytest.mark.parametrize("padding", [1, MAX_HEADERS - 1], ids=["small batch", "large batch"])
@compressed_by
def test_a_record_with_too_many_headers_is_left_out_and_its_neighbours_are_read(name: str, padding: int) -> None:
    beside = [padding] * 40
    batch = batch_of(*beside, MAX_HEADERS + 1, MAX_HEADERS, 0, MAX_HEADERS + 1, *beside, name=name)
    found = read(batch)
    assert [one.offset for one in found] == [*range(84)]
    assert [number for number, one in enumerate(found) if isinstance(one, OversizedRecord)] == [40, 43]
    assert [len(one.headers) for one in found[39:44]] == [padding, 1, MAX_HEADERS, 0, 1]
    assert all(one.value == b"value" for one in found if not isinstance(one, OversizedRecord))
    left_out = found[40]
    assert (left_out.key, left_out.value, left_out.timestamp) == (b"key", None, 1_040)
    ((header, size),) = left_out.headers
    assert header == OMITTED_BYTES
    assert int(size or 0) - 3 * MAX_HEADERS in range(100)
    assert read(batch, offset=42) == found[42:]


def test_a_record_with_too_many_headers_is_bad_and_the_reason_says_how_many() -> None:
    good, _, (bad,) = sort_out(EVENTS.decode, read(batch_of(300_000)))
    assert not good
    assert isinstance(bad.error, TooLarge)
    assert "300,000 headers, more than the 10,000" in str(bad.error)
    assert "stays on events, partition 3" in str(bad.error)


@pytest.mark.slow
@pytest.mark.parametrize("headers", [[1_000_000], [9_000] * 25, [300] * 800], ids=["one", "large", "small"])
@pytest.mark.parametrize("header", [b"\x00\x01", b"\x04ab\x04cd"], ids=["empty", "distinct"])
def test_headers_take_no_more_memory_while_they_are_read_than_values(headers: list[int], header: bytes) -> None:
    batch = batch_of(*headers, name="zstd", header=header)
    gc.collect()
    tracemalloc.start()
    try:
        seen = 0
        for records in polls(batch):
            assert memory_of(records) <= 2 * POLL_BYTES
            seen += len(records)
        assert seen == len(headers)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a", "name of a header"])
@pytest.mark.parametrize("value", [None, b"", b"value"])
def test_headers_count_for_the_memory_that_they_take(name: str, value: bytes | None) -> None:
    header = varint(len(name)) + name.encode() + (b"\x01" if value is None else varint(len(value)) + value)
    result = fetched_result(batch_of(*[1_000] * 15, header=header))
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        records = result.getall()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert records
    assert taken <= memory_of(records) <= 4 * taken
    assert taken <= sum(map(size_of, records))


@pytest.mark.anyio
@pytest.mark.parametrize(("headers", "is_kept"), [(MAX_HEADERS - 11, True), (MAX_HEADERS - 10, False)])
async def test_a_dead_letter_has_no_more_headers_than_are_read(headers: int, is_kept: bool) -> None:  # noqa: FBT001 - of a test
    record = Stored(value=b"bad", headers=[("a", b"")] * headers)
    letter = await letter_of(BadRecord(record, ValueError("why"), tries=1))
    assert len(letter.all_headers()) <= MAX_HEADERS
    assert letter.error == "why"
    assert is_omitted(letter) is not is_kept
    assert letter.value == (b"bad" if is_kept else None)
