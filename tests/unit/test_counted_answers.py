"""What an answer that shows records counts for before it is made."""

import gc
import tracemalloc

import msgspec
import pytest
from litestar.serialization import encode_json, get_serializer
from samples import Stored, as_json

from apps.chassis.http.admission import unbounded
from apps.consumer.browsing.counted_answers import MAKE_LATER, TEXT_COPIES, counted, memory_of_answer
from apps.consumer.browsing.record_view import View, show
from contracts.record import size_of
from tests.event import EVENTS

VIEW = View(EVENTS.decode)
RECORDS = {
    "good": Stored(value=as_json(text="x" * 200_000)),
    "controls": Stored(value=b"\x01" * 200_000),
    "quotes": Stored(value=b'"' * 200_000),
    "wide": Stored(value=b"\x01" * 200_000 + "\N{GRINNING FACE}".encode()),
    "binary": Stored(value=b"\xff" * 200_000),
    "key": Stored(key=b"\x7f\t\n\\" * 50_000, value=b""),
    "headers": Stored(value=b"", headers=[("name", b"\x02" * 20)] * 9_000),
    "names": Stored(value=b"", headers=[("\x1f" * 20, None)] * 9_000),
    "small headers": Stored(value=b"", headers=[("", b"\xff")] * 9_000),
}
each = pytest.mark.parametrize("name", RECORDS)


@each
def test_an_answer_has_about_as_many_bytes_as_it_is_counted_for(name: str) -> None:
    record = RECORDS[name]
    answer = len(msgspec.json.encode(show(VIEW, record)))
    expected = memory_of_answer([record]) - TEXT_COPIES * size_of(record)
    assert answer <= memory_of_answer([record] * 100) // 100
    assert expected <= 1.5 * answer


@each
def test_making_an_answer_takes_no_more_memory_than_it_is_counted_for(name: str) -> None:
    records = [RECORDS[name]] * 8
    gc.collect()
    tracemalloc.start()
    try:
        shown = counted(unbounded(), records, lambda record: show(VIEW, record))
        encode_json(shown, get_serializer(MAKE_LATER))
        assert tracemalloc.get_traced_memory()[1] <= 1.6 * memory_of_answer(records)  # the encoder reserves more
    finally:
        tracemalloc.stop()
