import gzip
import struct

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from apps.consumer.header_names import TolerantRecords

Header = tuple[str, bytes | None]


def batch_of(*headers: list[Header], compression: int = 0) -> bytes:
    """Return a batch with a record for each list of headers."""
    builder = DefaultRecordBatchBuilder(2, compression, False, -1, -1, -1, 2**20)  # noqa: FBT003 - not transactional
    for offset, of_record in enumerate(headers):
        builder.append(offset, 1_000 + offset, b"key", b"value %d" % offset, of_record)
    return bytes(builder.build())


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


def read(fetched: bytes) -> list[tuple[int, int, bytes, bytes, list[Header]]]:
    found = []
    records = TolerantRecords(fetched)
    while records.has_next():
        batch = records.next_batch()
        assert batch.validate_crc()
        found += [(r.offset, r.timestamp, bytes(r.key), bytes(r.value), list(r.headers)) for r in batch]
    return found


def test_a_header_name_that_is_no_utf_8_is_escaped_and_nothing_else_is_changed() -> None:
    headers: list[list[Header]] = [[("a", b"\xff")], [("ZZ", b"ZZ"), ("b", None)], [("größe", b"")], []]
    straight = batch_of(*headers)
    wrong = with_bytes(straight, b"\x04ZZ", b"\x04\xffZ")
    expected = [(at, 1_000 + at, b"key", b"value %d" % at, of_record) for at, of_record in enumerate(headers)]
    assert read(straight) == expected
    expected[1] = (1, 1_001, b"key", b"value 1", [("\\xffZ", b"\xffZ"), ("b", None)])
    assert read(wrong + straight)[:4] == expected
    assert len(read(wrong + straight)) == 8
    assert read(straight + wrong + straight)[4:8] == expected
    assert read(gzipped(wrong)) == expected


@pytest.mark.parametrize("wrong", [0, 499, 500, 777, 999])
def test_no_record_is_left_out_or_read_twice_wherever_in_a_long_batch_a_wrong_name_stands(wrong: int) -> None:
    headers: list[list[Header]] = [[("ZZ" if at == wrong else "a", b"")] for at in range(1_000)]
    found = read(with_bytes(batch_of(*headers), b"\x04ZZ", b"\x04\xffZ"))
    assert [at for at, *_ in found] == list(range(1_000))
    assert [of_record[0][0] for *_, of_record in found] == ["\\xffZ" if at == wrong else "a" for at in range(1_000)]


@pytest.mark.parametrize("compression", range(5))
def test_a_straight_batch_is_read_as_it_was_written_however_it_is_compressed(compression: int) -> None:
    headers: list[list[Header]] = [[("a", b"\xff")], [("größe", None)]] * 600
    assert [record[-1] for record in read(batch_of(*headers, compression=compression))] == headers
