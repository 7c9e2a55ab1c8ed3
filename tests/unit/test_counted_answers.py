"""What an answer that shows records counts for before it is made."""

import gc
import tracemalloc
from http import HTTPStatus

import msgspec
import pytest
from litestar.plugins.problem_details import ProblemDetailsException
from litestar.serialization import encode_json, get_serializer
from samples import Stored, as_json

from apps.chassis.http.admission import Limit, Share, UnsentAnswers, unbounded
from apps.consumer.browsing import counted_answers as module
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


@pytest.mark.slow
@each
def test_an_answer_has_about_as_many_bytes_as_it_is_counted_for(name: str) -> None:
    record = RECORDS[name]
    answer = len(msgspec.json.encode(show(VIEW, record)))
    expected = memory_of_answer([record]) - TEXT_COPIES * size_of(record)
    assert answer <= memory_of_answer([record] * 100) // 100
    assert expected <= 1.5 * answer


@pytest.mark.slow
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


def test_a_call_without_room_is_refused_before_each_byte_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[object] = []
    monkeypatch.setattr(module, "memory_of_answer", looked_at.append)
    share = Share(Limit(1_000_000), UnsentAnswers())
    other = Share(share._limit, UnsentAnswers())
    assert other.take(500_000)
    with pytest.raises(ProblemDetailsException) as refused:
        counted(share, [RECORDS["good"]] * 4, lambda record: show(VIEW, record))
    assert refused.value.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert not looked_at
