import asyncio
import datetime as dt
import decimal
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from functools import partial
from itertools import pairwise
from operator import attrgetter
from typing import Annotated, Any, TypeVar, cast
from unittest.mock import AsyncMock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta
from samples import EVENT, LONG, an_event, as_json, everything_else_has_run, fields_of_an_event, until

from apps.chassis.http.admission import Limit, Share, UnsentAnswers, unbounded
from apps.chassis.http.repeated_names import check_names
from apps.producer.generating.generators import CannotGenerate, generator_of
from apps.producer.publishing import calls, lines, values
from apps.producer.publishing.calls import Generated, generate_and_send, send_records
from apps.producer.publishing.deliveries import Delivery, Span
from apps.producer.publishing.in_order import CHUNKS_ON_THE_WAY, in_order
from apps.producer.publishing.lines import BAD_LINE_BYTES, MAX_LINES, read_lines, send_lines, split_lines
from apps.producer.publishing.publisher import Busy, OutOfReach, Publisher
from apps.producer.publishing.receipts import Answer, BadLine, Receipt
from apps.producer.publishing.values import BadRecords, read_line, read_records, to_records
from contracts.depth import MAX_DEPTH, nests_freely
from contracts.stream import Stream, encode
from tests.event import EVENTS, Event

pytestmark = pytest.mark.anyio

T = TypeVar("T")

MAX_RECORD_BYTES = 1_000


async def test_the_time_to_read_a_body_counts_as_waiting_but_leaves_some_for_kafka() -> None:
    publisher, begun = FakePublisher(), time.monotonic()
    for since in (begun, begun - 60):
        await send_records(cast("Publisher", publisher), [b"key"], [b"{}"], since=since)
    just_now, long_ago = publisher.since
    assert just_now == begun
    assert long_ago is not None
    assert begun - 60 < long_ago < begun


class FakePublisher:
    """Acknowledges what it is given, except for the values that a test has fail or wait."""

    def __init__(self) -> None:
        self.max_record_bytes = MAX_RECORD_BYTES
        self.published: list[bytes] = []
        self.calls = 0
        self.since: list[float | None] = []
        self.patient: list[bool] = []
        self.holds: dict[int, asyncio.Event] = {}
        self.failing: dict[int, Exception] = {}
        self.unacknowledged: set[int] = set()
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def publish(
        self, keys: Sequence[bytes], values: Sequence[bytes], *, since: float | None = None, patient: bool = True
    ) -> Delivery:
        self.since.append(since)
        self.patient.append(patient)
        self.calls += 1
        call = self.calls
        await self.goes_on.wait()
        if call in self.holds:
            await self.holds[call].wait()
        if call in self.failing:
            raise self.failing[call]
        delivery = Delivery(keys, values, [0] * len(keys))
        first = len(self.published)
        self.published += values
        (piece,) = delivery.slices
        if call in self.unacknowledged:
            piece.settle(Span(0, 1, offset=first, timestamp=1))
            piece.settle(Span(1, len(keys), error="not acknowledged", outcome="unknown"))
        else:
            piece.settle(Span(0, len(keys), offset=first, timestamp=1))
        return delivery


def as_publisher(fake: FakePublisher) -> Publisher:
    return cast(Publisher, fake)


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def read_values(stream: Stream[T], body: bytes) -> list[T]:
    return list(map(stream.decode, read_records(stream, body, 10**9)[1]))


async def send(stream: Stream[T], fake: FakePublisher, values: Sequence[T]) -> Answer:
    return await send_records(as_publisher(fake), *to_records(stream, values, fake.max_record_bytes))


async def answers_to(fake: FakePublisher, *pieces: bytes, stream: Stream[Any] = EVENTS) -> list[Receipt | BadLine]:
    async with asyncio.timeout(LONG):
        return [
            answer
            async for answers in send_lines(stream, as_publisher(fake), pieces_of(*pieces), unbounded())
            for answer in answers
        ]


def line(event_id: str, **fields: Any) -> bytes:  # noqa: ANN401 - right or wrong ones
    return as_json(id=event_id, **fields) + b"\n"


def test_one_event_and_a_list_of_events_are_read() -> None:
    assert [encode(event) for event in read_values(EVENTS, as_json())] == [encode(EVENT)]
    events = read_values(EVENTS, b" \r\n\t[" + as_json(id="1") + b",\n" + as_json(id="2") + b"]\n")
    assert [event.id for event in events] == ["1", "2"]
    assert read_values(EVENTS, b"[]") == []


@pytest.mark.parametrize(
    ("body", "path", "detail"),
    [
        (as_json(number="36"), "$.number", "Expected `int`, got `str`"),
        (as_json(number=151), "$.number", "Expected `int` <= 150"),
        (as_json(no_field_of_anyone="x"), "$", "unknown field `no_field_of_anyone`"),
        (as_json().replace(b'"number":36,', b""), "$", "missing required field `number`"),
        (b"[" + as_json() + b"," + as_json(id="") + b"]", "$[1].id", "length >= 1"),
        (b"[" + as_json() + b"," + as_json(no_field_of_anyone="x") + b"]", "$[1]", "no_field_of_anyone"),
        (b"[" + as_json() + b",7]", "$[1]", "Expected `object`, got `int`"),
        (b"[[" + as_json() + b"]]", "$[0]", "Expected `object`, got `array`"),
        (b"7", "$", "Expected `object`, got `int`"),
        (b"null", "$", "Expected `object`, got `null`"),
        (b"", "$", "truncated"),
        (b"[", "$", "truncated"),
        (b"{not json", "$", "malformed"),
        (as_json(text="x").replace(b'x"', b'\\ud800"'), "$", "malformed: half of a surrogate pair"),
        (as_json(text="x").replace(b'x"}', b'\\ud800"'), "$", "truncated"),
        (as_json() + as_json(), "$", "malformed"),
        (as_json().replace(b"Ada", b"\xff"), "$", "UTF-8"),
        (b"\xff", "$", "malformed"),
        (b"[" * 100_000, "$[0]", "Expected `object`"),
        (b'{"unknown":' + b"[" * 100_000, "$", ""),
    ],
)
def test_what_holds_no_events_is_refused_at_the_place_that_is_wrong(body: bytes, path: str, detail: str) -> None:
    with pytest.raises(BadRecords) as refused:
        read_values(EVENTS, body)
    assert refused.value.path == path
    assert detail in str(refused.value)
    assert " - at " not in str(refused.value)


@pytest.mark.parametrize("again", [b'"number":7', b'"\\u006eumber" : 7', b'"number":36'])
async def test_a_field_that_is_given_twice_is_refused_by_its_place(again: bytes) -> None:
    twice = as_json(text='Ada "Countess" \\').removesuffix(b"}") + b"," + again + b"}"
    with pytest.raises(BadRecords, match="'number' is given twice") as refused:
        read_values(EVENTS, twice)
    assert refused.value.path == "$.number"
    with pytest.raises(BadRecords, match="'number' is given twice") as refused:
        read_values(EVENTS, b"[" + as_json() + b", " + twice + b"]")
    assert refused.value.path == "$[1].number"
    fake = FakePublisher()
    answers = await answers_to(fake, line("1") + twice + b"\n" + line("3"))
    assert [answer.line if isinstance(answer, BadLine) else answer.id for answer in answers] == ["1", 2, "3"]
    assert [EVENTS.decode(value).id for value in fake.published] == ["1", "3"]


def test_text_that_looks_like_a_field_is_none() -> None:
    for name in ('","number":7,"x":"', '\\","number":7,"', '"' * 50, "\\" * 51, '\\"' * 9):
        events = [fields_of_an_event(text=name), fields_of_an_event()]
        assert msgspec.to_builtins(read_values(EVENTS, msgspec.json.encode(events[0]))) == events[:1]
        assert msgspec.to_builtins(read_values(EVENTS, msgspec.json.encode(events))) == events


@given(st.binary())
def test_no_body_is_read_otherwise_than_as_events_or_as_bad(body: bytes) -> None:
    with suppress(BadRecords):
        assert all(isinstance(event, Event) for event in read_values(EVENTS, body))


def test_a_record_larger_than_the_topic_takes_is_refused_at_its_place() -> None:
    small, large = an_event(), an_event(text="x" * 2_000)
    size = len(large.id) + len(encode(large))
    assert to_records(EVENTS, [small, large], size) == (
        [small.id.encode(), large.id.encode()],
        [encode(small), encode(large)],
    )
    with pytest.raises(BadRecords, match=f"{size} bytes.*{size - 1}") as refused:
        to_records(EVENTS, [small, large], size - 1)
    assert refused.value.path == "$[1]"


async def test_events_are_sent_only_when_all_of_them_fit() -> None:
    fake = FakePublisher()
    with pytest.raises(BadRecords):
        await send(EVENTS, fake, [an_event(), an_event(text="x" * MAX_RECORD_BYTES)])
    assert fake.calls == 0


async def test_every_event_sent_gets_a_receipt_in_the_order_given() -> None:
    fake = FakePublisher()
    events = [an_event(id=str(i)) for i in range(5)]
    answer = await send(EVENTS, fake, events)
    assert answer.delivered == 5
    assert [(receipt.id, receipt.offset) for receipt in answer.receipts] == [(str(i), i) for i in range(5)]
    assert fake.published == [encode(event) for event in events]


def values_of(made: Generated) -> list[bytes]:
    return [bytes(one) for one in msgspec.json.decode(b"[%b]" % b",".join(made.pieces), type=list[msgspec.Raw])]


async def test_made_events_are_kept_by_chunk_so_that_their_memory_goes_back_to_the_system() -> None:
    made = await generate_and_send(EVENTS, as_publisher(FakePublisher()), 10, chunk_records=3)
    assert [piece.count(b'"id"') for piece in made.pieces] == [3, 3, 3, 1]


async def test_events_are_made_in_the_number_asked_for_and_returned_in_the_order_sent() -> None:
    fake = FakePublisher()
    made = await generate_and_send(EVENTS, as_publisher(fake), 10, chunk_records=3)
    assert made.answer is None
    assert values_of(made) == fake.published
    assert len(set(values_of(made))) == 10
    assert fake.calls == 4


@pytest.mark.parametrize("failure", [Busy("too much"), OutOfReach("no broker"), None])
async def test_a_failure_in_the_middle_is_reported_for_each_event_in_order(failure: Exception | None) -> None:
    fake = FakePublisher()
    if failure:
        fake.failing[2] = failure
    else:
        fake.unacknowledged.add(2)
    made = await generate_and_send(EVENTS, as_publisher(fake), 10, chunk_records=3)
    assert made.answer is not None
    receipts = made.answer.receipts
    assert [receipt.id for receipt in receipts] == [EVENTS.decode(event).id for event in values_of(made)]
    assert [receipt.outcome for receipt in receipts[:3]] == [None] * 3
    if failure:
        assert [receipt.outcome for receipt in receipts[3:6]] == ["not_written"] * 3
        assert {receipt.error for receipt in receipts[3:6]} == {str(failure)}
    else:
        assert [receipt.outcome for receipt in receipts[3:6]] == [None, "unknown", "unknown"]
    assert (
        made.answer.delivered
        == sum(receipt.error is None for receipt in receipts)
        == len([1 for receipt in receipts if receipt.offset is not None])
    )


@pytest.mark.parametrize("failure", [OutOfReach("no broker"), None])
async def test_what_was_not_begun_when_an_earlier_chunk_failed_is_neither_made_nor_sent(
    failure: Exception | None,
) -> None:
    fake = FakePublisher()
    if failure:
        fake.failing[2] = failure
    else:
        fake.unacknowledged.add(2)
    made = await generate_and_send(EVENTS, as_publisher(fake), 100, chunk_records=2)
    assert fake.calls <= 2 + CHUNKS_ON_THE_WAY + 1
    assert made.answer is not None
    receipts = made.answer.receipts
    assert len(values_of(made)) == len(receipts) < 100
    sent = set(fake.published)
    for value, receipt in zip(values_of(made), receipts, strict=True):
        if value in sent:
            assert receipt.outcome in {None, "unknown"}
        else:
            assert receipt.outcome == "not_written"
            assert receipt.error == str(failure or "not sent: an earlier record was not acknowledged")


@pytest.mark.parametrize("failure", [Busy("too much"), OutOfReach("no broker")])
async def test_when_not_even_the_first_could_be_sent_nothing_is(failure: Exception) -> None:
    fake = FakePublisher()
    fake.failing = dict.fromkeys(range(1, 100), failure)
    with pytest.raises(type(failure), match=str(failure)):
        await generate_and_send(EVENTS, as_publisher(fake), 10)
    assert fake.published == []


async def test_a_first_chunk_that_found_no_room_does_not_hide_that_a_later_one_was_sent() -> None:
    fake = FakePublisher()
    fake.failing[1] = Busy("too much")
    fake.goes_on.clear()
    await generator_of(EVENTS)  # imports it, which takes long
    making = asyncio.create_task(generate_and_send(EVENTS, as_publisher(fake), 4, chunk_records=2))
    await until(lambda: fake.calls == 2)
    fake.goes_on.set()
    made = await making
    assert made.answer is not None
    assert [receipt.outcome for receipt in made.answer.receipts] == ["not_written", "not_written", None, None]
    assert values_of(made)[2:] == fake.published


async def test_chunks_that_wait_for_an_earlier_one_are_given_up_with_it() -> None:
    fake, under_way = FakePublisher(), CHUNKS_ON_THE_WAY + 2
    fake.holds = {1: asyncio.Event(), 2: asyncio.Event()}
    await generator_of(EVENTS)  # imports it, which takes long
    making = asyncio.create_task(generate_and_send(EVENTS, as_publisher(fake), 40, chunk_records=2))
    await until(lambda: fake.calls == under_way)
    acknowledged_after = time.monotonic()
    fake.holds[1].set()
    await until(lambda: fake.calls > under_way)
    fake.holds[2].set()
    await making
    assert len(set(fake.since[:under_way])) == 1
    assert (fake.since[under_way] or 0) >= acknowledged_after


@pytest.mark.parametrize(
    ("size", "fault"), [(2_000, "may have .* bytes"), (400, "too large for one call"), (0, "no text is so short")]
)
async def test_records_that_cannot_be_generated_or_are_too_large_do_not_hide_what_was_sent_before(
    size: int, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, sizes = FakePublisher(), iter([10, 10, size])

    async def generate(number: int, at_a_time: int, _: asyncio.Semaphore) -> AsyncIterator[list[Event]]:
        for _start in range(0, number, at_a_time):
            if not (text := "x" * next(sizes)):
                raise CannotGenerate("no text is so short")
            yield [an_event(text=text) for _ in range(at_a_time)]

    monkeypatch.setattr(calls, "generator_of", AsyncMock(return_value=generate))
    made = await generate_and_send(EVENTS, as_publisher(fake), 10, chunk_records=2, max_bytes=1_000)
    assert made.answer is not None
    assert (made.answer.delivered, len(fake.published)) == (4, 4)
    assert [receipt.outcome for receipt in made.answer.receipts] == [None] * 4 + ["not_written"] * 2
    assert {bool(re.search(fault, str(receipt.error))) for receipt in made.answer.receipts[4:]} == {True}
    sizes = iter([size])
    with pytest.raises(CannotGenerate, match=fault):
        await generate_and_send(EVENTS, as_publisher(fake), 10, chunk_records=2, max_bytes=700)
    assert len(fake.published) == 4


async def test_calls_whose_values_take_too_long_are_refused_and_hold_up_no_others() -> None:
    goes_on, made = threading.Event(), 0

    class Slow(msgspec.Struct):
        id: str

        def __post_init__(self) -> None:
            nonlocal made
            made += 1
            goes_on.wait(LONG if made > 6 else 0)  # each value is built twice: made, and decoded

    slow, fake = Stream("slow", Slow, key=lambda one: one.id), FakePublisher()
    generate = partial(generate_and_send, slow, as_publisher(fake), turns=asyncio.Semaphore(2), within_s=0.2)
    first = await generate(10, chunk_records=2)
    assert first.answer is not None
    assert [receipt.outcome for receipt in first.answer.receipts] == [None, None, "not_written", "not_written"]
    refused = await asyncio.gather(*(generate(2) for _ in range(50)), return_exceptions=True)
    assert {str(error) for error in refused} == {"too many slow are being generated: retry later, or generate fewer"}
    assert {type(error) for error in refused} == {Busy}
    assert len(fake.published) == 2
    goes_on.set()
    sent = await generate_and_send(slow, as_publisher(fake), 2)
    assert sent.answer is None
    assert made <= 8 + 2 * 2  # of what was given up, the value under way was finished and no other begun


async def test_a_call_that_generates_has_the_turn_until_all_its_values_are_made() -> None:
    turns, fake = asyncio.Semaphore(1), FakePublisher()
    generate = partial(generate_and_send, EVENTS, as_publisher(fake), turns=turns, chunk_records=2)
    async with turns:
        with pytest.raises(Busy, match="being generated"):
            await generate(2, within_s=0.01)
        waiting = [asyncio.create_task(generate(6)) for _ in range(3)]
        await everything_else_has_run()
        assert not fake.published
    made = [values_of(one) for one in await asyncio.gather(*waiting)]
    assert fake.published == [value for values in made for value in values]
    assert not turns.locked()


async def test_a_call_that_waits_for_its_acknowledgement_leaves_its_turn_to_others() -> None:
    turns, fake = asyncio.Semaphore(1), FakePublisher()
    fake.goes_on.clear()
    sending = asyncio.create_task(generate_and_send(EVENTS, as_publisher(fake), 2, turns))
    await until(lambda: fake.calls == 1)
    assert not turns.locked()
    fake.goes_on.set()
    await sending


async def test_first_calls_that_arrive_together_share_one_generator() -> None:
    stream = Stream("together", Event, key=lambda event: event.id)
    generators = await asyncio.gather(*(generator_of(stream) for _ in range(4)))
    assert len(set(generators)) == 1


async def split(body: bytes, cuts: Sequence[int], longest: int) -> list[bytes | None]:
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces = [body[start:stop] for start, stop in pairwise(places)]
    return [found async for lines in split_lines(pieces_of(*pieces), longest, unbounded()) for found in lines]


@given(
    st.text("ab\n \r", max_size=60).map(str.encode),
    st.lists(st.integers(0, 60), max_size=20),
    st.integers(1, 8),
)
async def test_wherever_a_body_is_cut_its_lines_are_the_same(body: bytes, cuts: list[int], longest: int) -> None:
    lines = body.split(b"\n")
    if not lines[-1]:
        lines.pop()
    for found, line in zip(await split(body, cuts, longest), lines, strict=True):
        expected = None if len(line) > longest else line
        assert found == expected or (found is not None and found.strip() == line.strip() == b"")


def test_a_record_that_no_call_could_delete_is_refused_where_records_can_be_deleted() -> None:
    body = b"[" + as_json(text="1") + b"," + as_json(text="") + b"]"
    key_of = attrgetter("text")
    assert read_values(Stream("kept", Event, key=key_of), body)
    with pytest.raises(BadRecords, match="the key is empty") as raised:
        read_values(Stream("deleted", Event, key=key_of, deletes=True), body)
    assert raised.value.path == "$[1]"
    longest = "é" * 8_192
    deletable = Stream("deleted", Event, key=key_of, deletes=True)
    assert read_values(deletable, as_json(text=longest))
    with pytest.raises(BadRecords, match="the key has 16385 bytes, expected at most 16384: no call could delete"):
        read_values(deletable, as_json(text=f"{longest}a"))


@pytest.mark.parametrize("blank", [b"\n", b" \r\n"])
async def test_blank_lines_are_counted_and_neither_read_nor_sent_however_many_they_are(
    blank: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def read_and_note(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401 - of `read_lines`
        read.append(arguments[2])
        return read_lines(*arguments, **more)

    monkeypatch.setattr(lines, "read_lines", read_and_note)
    answers = await answers_to(FakePublisher(), *[blank * 2_000] * 50, b"no event\n")
    assert [answer.line for answer in answers if isinstance(answer, BadLine)] == [100_001]
    assert read == [100_001]


async def test_lines_come_as_soon_as_they_have_ended() -> None:
    lines = split_lines(pieces_of(b"a\nb\nc", b"", b"d\n", b"e"), 10, unbounded())
    assert [found async for found in lines] == [[b"a", b"b"], [b"cd"], [b"e"]]


async def test_of_a_line_that_never_ends_no_more_is_kept_than_a_record_may_have() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1_000):
            yield b"x" * 100
        yield b"\nshort\n"

    assert [found async for found in split_lines(endless(), 250, unbounded())] == [[None, b"short"]]


async def test_every_line_is_answered_in_order() -> None:
    fake = FakePublisher()
    answers = await answers_to(fake, b"".join(line(str(i)) for i in range(5)), line("5"), as_json(id="6"))
    assert [msgspec.to_builtins(answer) for answer in answers] == [
        {"id": str(i), "partition": 0, "offset": i, "timestamp": 1} for i in range(7)
    ]
    assert [EVENTS.decode(value).id for value in fake.published] == [str(i) for i in range(7)]


async def test_a_bad_line_is_named_by_its_number_and_its_neighbours_are_sent() -> None:
    fake = FakePublisher()
    answers = await answers_to(
        fake,
        line("1") + line("2", number="36") + b"\n" + line("4"),
        b"[" + line("5").strip() + b"]\n",
        b"not json\n" + line("7", text="x" * MAX_RECORD_BYTES),
        b"\xff\n\r\n  \n" + line("11").replace(b"\n", b"\r\n") + b'{"id":',
    )
    assert [answer.line if isinstance(answer, BadLine) else answer.id for answer in answers] == [
        "1", 2, "4", 5, 6, 7, 8, "11", 12,
    ]  # fmt: skip
    bad = {answer.line: answer for answer in answers if isinstance(answer, BadLine)}
    assert "$.number" in bad[2].error
    assert "array" in bad[5].error
    assert str(MAX_RECORD_BYTES) in bad[7].error
    assert {answer.outcome for answer in bad.values()} == {"not_written"}
    assert [EVENTS.decode(value).id for value in fake.published] == ["1", "4", "11"]
    assert all(answer.offset is not None for answer in answers if isinstance(answer, Receipt))


async def test_a_receipt_names_the_key_of_its_record_whatever_that_is() -> None:
    stream = Stream("events-by-name", Event, key=lambda event: event.text)
    fake = FakePublisher()
    assert [receipt.id for receipt in (await send(stream, fake, [an_event(text="Žofie")])).receipts] == ["Žofie"]
    expected = [Receipt("Žofie", partition=0, offset=1, timestamp=1)]
    assert await answers_to(fake, as_json(text="Žofie"), stream=stream) == expected
    fake.failing[3] = Busy("not now")
    (refused,) = await answers_to(fake, as_json(text="Žofie"), stream=stream)
    assert isinstance(refused, Receipt)
    assert (refused.id, refused.error) == ("Žofie", "not now")


async def test_a_line_may_be_longer_than_its_record_whose_text_is_written_shorter() -> None:
    fake = FakePublisher()
    spelt_out = "".join(f"\\u{ord(letter):04x}" for letter in "x" * (MAX_RECORD_BYTES // 2))
    line = as_json(id="1", text="").replace(b'"text":""', f'"text":     "{spelt_out}"'.encode())
    assert len(line) > 3 * MAX_RECORD_BYTES
    (answer,) = await answers_to(fake, line + b"\n")
    assert answer == Receipt("1", partition=0, offset=0, timestamp=1)


async def test_a_record_that_the_topic_does_not_take_is_a_bad_line_though_the_line_was_short_enough() -> None:
    fake = FakePublisher()
    long_id = "i" * 60
    padding = MAX_RECORD_BYTES - len(as_json(id=long_id, text=""))
    just_too_large = as_json(id=long_id, text="x" * padding)
    assert len(just_too_large) == MAX_RECORD_BYTES
    (answer,) = await answers_to(fake, just_too_large + b"\n")
    assert isinstance(answer, BadLine)
    assert f"{MAX_RECORD_BYTES + 60} bytes" in answer.error
    assert fake.calls == 0


async def test_empty_lines_and_an_empty_body_are_answered_by_nothing() -> None:
    fake = FakePublisher()
    assert await answers_to(fake) == []
    assert await answers_to(fake, b"", b"\n\n", b"  \r\n") == []
    assert fake.calls == 0


@pytest.mark.parametrize("failure", [Busy("too much"), OutOfReach("no broker")])
async def test_lines_that_could_not_be_sent_are_reported_and_later_ones_are_tried(failure: Exception) -> None:
    fake = FakePublisher()
    fake.failing[1] = failure
    answers = await answers_to(fake, line("1") + b"not json\n" + line("3"), line("4"))
    assert [msgspec.to_builtins(answer) for answer in answers if isinstance(answer, Receipt)] == [
        {"id": "1", "error": str(failure), "outcome": "not_written"},
        {"id": "3", "error": str(failure), "outcome": "not_written"},
        {"id": "4", "partition": 0, "offset": 0, "timestamp": 1},
    ]
    assert [answer.line for answer in answers if isinstance(answer, BadLine)] == [2]


@pytest.mark.parametrize(("patient", "expected"), [(False, [True, False, False, True]), (True, [True] * 4)])
async def test_a_call_of_lines_waits_for_kafka_with_each_chunk_only_if_it_is_answered_meanwhile(
    patient: bool,  # noqa: FBT001 - as it is parametrized
    expected: list[bool],
) -> None:
    fake = FakePublisher()
    fake.failing = dict.fromkeys((1, 2), OutOfReach("no broker"))

    async def body() -> AsyncIterator[bytes]:
        for number in range(4):
            yield line(str(number))
            await until(lambda: len(fake.patient) > number)  # noqa: B023 - it is called here
            await everything_else_has_run()

    sent = send_lines(EVENTS, as_publisher(fake), body(), unbounded(), patient=patient)
    answers = [one async for some in sent for one in some]
    assert fake.patient == expected
    assert [answer.error is None for answer in answers] == [False, False, True, True]


async def test_a_slow_sender_is_answered_before_it_sends_more() -> None:
    fake = FakePublisher()
    answered = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield line("1")
        await answered.wait()
        yield line("2")

    ids: list[str] = []
    async with asyncio.timeout(LONG):
        async for answers in send_lines(EVENTS, as_publisher(fake), slow(), unbounded()):
            ids += [answer.id for answer in answers if isinstance(answer, Receipt)]
            answered.set()
    assert ids == ["1", "2"]


async def test_no_more_is_read_than_can_be_on_the_way() -> None:
    fake = FakePublisher()
    fake.goes_on.clear()
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for i in range(1_000):
            read += 1
            yield line(str(i))

    receiving = asyncio.create_task(_all_of(send_lines(EVENTS, as_publisher(fake), body(), unbounded())))
    await everything_else_has_run()
    assert CHUNKS_ON_THE_WAY <= read <= CHUNKS_ON_THE_WAY + 3
    fake.goes_on.set()
    async with asyncio.timeout(LONG):
        answers = await receiving
    assert sum(map(len, answers)) == read == 1_000


def test_only_the_events_that_repeat_a_field_are_searched_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[bytes] = []

    def search(text: bytes) -> None:
        searched.append(text)
        check_names(text)

    monkeypatch.setattr(values, "check_names", search)
    repeating = as_json(id="2")[:-1] + b',"number":1}'
    with pytest.raises(BadRecords, match="given twice") as raised:
        read_values(EVENTS, b"[" + b",".join([*[as_json()] * 100, repeating, repeating]) + b"]")
    assert raised.value.path == "$[100].number"
    assert searched == [repeating]


@pytest.mark.slow
async def test_lines_that_are_no_records_are_counted_until_they_are_answered_and_few_are_read_before_that() -> None:
    limit = Limit(BAD_LINE_BYTES * MAX_LINES * 2 * CHUNKS_ON_THE_WAY)
    share = Share(limit, UnsentAnswers())
    lines = send_lines(EVENTS, as_publisher(FakePublisher()), pieces_of(b"x\n" * 100_000), share)
    assert len(await anext(lines)) == MAX_LINES
    await everything_else_has_run()
    assert 0 < share.taken_bytes <= BAD_LINE_BYTES * MAX_LINES * (CHUNKS_ON_THE_WAY + 3)
    assert sum(map(len, await _all_of(lines))) == 100_000 - MAX_LINES
    assert share.taken_bytes == 0


async def test_more_lines_that_are_no_records_than_there_is_room_for_end_the_call() -> None:
    limit = Limit(BAD_LINE_BYTES * MAX_LINES * 2)
    others, share = Share(limit, UnsentAnswers()), Share(limit, UnsentAnswers())
    assert others.take(BAD_LINE_BYTES * MAX_LINES)
    lines = send_lines(EVENTS, as_publisher(FakePublisher()), pieces_of(b"x\n" * 2 * MAX_LINES), share)
    assert len(await anext(lines)) == MAX_LINES
    await everything_else_has_run()
    with pytest.raises(Busy):
        await anext(lines)


async def test_others_have_their_turn_while_very_many_lines_that_came_together_are_read() -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    taking = asyncio.create_task(take_turns())
    answers = await answers_to(FakePublisher(), b"x\n" * (40 * MAX_LINES))
    taking.cancel()
    assert [answer.line for answer in answers if isinstance(answer, BadLine)] == list(range(1, 40 * MAX_LINES + 1))
    assert turns >= 40


async def test_a_body_that_breaks_off_is_reported_after_what_came_before_it() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield line("1")
        raise ConnectionError("the caller is gone")

    answers: list[Receipt | BadLine] = []

    async def receive() -> None:
        async for some in send_lines(EVENTS, as_publisher(FakePublisher()), broken(), unbounded()):
            answers.extend(some)

    with pytest.raises(ConnectionError):
        await receive()
    assert [answer.id for answer in answers if isinstance(answer, Receipt)] == ["1"]


async def _all_of(lines: AsyncIterator[list[Receipt | BadLine]]) -> list[list[Receipt | BadLine]]:
    return [answers async for answers in lines]


@pytest.mark.parametrize(
    ("text", "path"),
    [(b" [" + as_json() + b"]", "$"), (b"[]", "$"), (as_json(number=-1), "$.number"), (b'"x"', "$"), (b"\xff", "$")],
)
def test_a_line_that_is_no_event_is_refused(text: bytes, path: str) -> None:
    with pytest.raises(BadRecords) as refused:
        read_line(EVENTS, text)
    assert refused.value.path == path


class Work:
    """Work whose parts wait until the test lets them go on; remembers which have begun and which were cancelled."""

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self.begun: list[int] = []
        self.cancelled: set[int] = set()
        self.ended: set[int] = set()
        self.go_on = [asyncio.Event() for _ in range(parts)]

    async def part(self, number: int) -> int:
        self.begun.append(number)
        try:
            await self.go_on[number].wait()
        except asyncio.CancelledError:
            self.cancelled.add(number)
            raise
        self.ended.add(number)
        return number

    async def __aiter__(self) -> AsyncIterator[Coroutine[Any, Any, int]]:
        for number in range(self.parts):
            yield self.part(number)


async def test_results_come_in_the_order_of_the_work_whichever_is_done_first() -> None:
    work = Work(5)
    results: list[int] = []

    async def collect() -> None:
        async with aclosing(in_order(aiter(work))) as found:
            results.extend([number async for number in found])

    collecting = asyncio.create_task(collect())
    await until(lambda: len(work.begun) == 5)
    for number in (4, 2, 3, 1):
        work.go_on[number].set()
        await until(lambda number=number: number in work.ended)  # type: ignore[misc]  # bound at once
        assert results == []
    work.go_on[0].set()
    await collecting
    assert results == [0, 1, 2, 3, 4]


async def test_no_more_work_is_begun_than_may_be_on_the_way() -> None:
    work = Work(100)
    results = in_order(aiter(work))
    first = asyncio.create_task(anext(results))
    await everything_else_has_run()
    assert CHUNKS_ON_THE_WAY <= len(work.begun) <= CHUNKS_ON_THE_WAY + 2
    work.go_on[0].set()
    assert await first == 0
    await results.aclose()


@pytest.mark.parametrize("parts", [3, CHUNKS_ON_THE_WAY, 100])
async def test_work_that_nobody_waits_for_any_more_is_cancelled(parts: int) -> None:
    before = asyncio.all_tasks()
    work = Work(parts)
    work.go_on[0].set()
    results = in_order(aiter(work))
    assert await anext(results) == 0
    await everything_else_has_run()
    await results.aclose()
    await everything_else_has_run()
    assert set(work.begun) == work.cancelled | {0}
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("parts", [3, 100])
async def test_work_is_cancelled_with_the_task_that_waits_for_it(parts: int) -> None:
    before = asyncio.all_tasks()
    work = Work(parts)

    async def collect() -> list[int]:
        async with aclosing(in_order(aiter(work))) as results:
            return [number async for number in results]

    collecting = asyncio.create_task(collect())
    await until(lambda: len(work.begun) >= 3)
    await everything_else_has_run()
    collecting.cancel()
    await asyncio.wait([collecting])
    await everything_else_has_run()
    assert set(work.begun) == work.cancelled
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("fails", ["a part", "the work itself"])
async def test_an_error_is_passed_on_after_the_results_before_it_and_ends_the_rest(fails: str) -> None:
    work = Work(4)
    work.go_on[0].set()

    async def failing() -> int:
        raise RuntimeError("no luck")

    async def parts() -> AsyncIterator[Coroutine[Any, Any, int]]:
        yield work.part(0)
        if fails == "the work itself":
            await failing()
        yield failing()
        yield work.part(1)

    results: list[int] = []

    async def collect() -> None:
        async for number in in_order(parts()):
            results.append(number)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(RuntimeError, match="no luck"):
        await collect()
    assert results == [0]
    await everything_else_has_run()
    assert work.cancelled == ({1} if fails == "a part" else set())


class Loose(msgspec.Struct):
    id: str
    payload: Any


LOOSE = Stream("loose", Loose, key=lambda loose: loose.id)


def below(frames: int, work: Callable[[], T]) -> T:
    """Do some work with this many more calls on the stack."""
    return below(frames - 1, work) if frames else work()


class Priced(msgspec.Struct):
    price: decimal.Decimal
    id: str | None = None

    def __post_init__(self) -> None:
        if self.price == 13:
            raise KeyError(self.id)


PRICED: Stream[Any] = Stream("priced", Priced, key=lambda priced: priced.id)


def test_a_number_of_any_length_is_read_beside_a_field_that_may_be_missing() -> None:
    (read,) = read_values(PRICED, b'{"id":"a","price":%b}' % (b"1" * 5_000))
    assert len(str(read.price)) == 5_000


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (b'{"price":"1"}', "the record has no key: AttributeError: 'NoneType' object has no attribute 'encode'"),
        (b'{"id":"b","price":"13"}', "KeyError: 'b'"),
    ],
)
async def test_a_value_for_which_code_of_the_contract_fails_is_refused_and_costs_no_other_line(
    wrong: bytes, fault: str
) -> None:
    with pytest.raises(BadRecords, match=fault):
        to_records(PRICED, read_values(PRICED, b'[{"id":"a","price":"1"},%b]' % wrong), MAX_RECORD_BYTES)
    fake = FakePublisher()
    sent = await answers_to(fake, b'{"id":"a","price":"1"}\n%b\n{"id":"c","price":"1"}' % wrong, stream=PRICED)
    assert sent == [Receipt("a", 0, 0, 1), BadLine(2, f"{fault} - at `$`"), Receipt("c", 0, 1, 1)]


class Measured(msgspec.Struct, omit_defaults=True):
    at: dt.datetime
    hour: Annotated[dt.time, Meta(tz=True)] | None = None
    took: dt.timedelta = dt.timedelta()
    by_sensor: dict[uuid.UUID, float] = {}
    by_time: list[dict[dt.datetime, Any]] = []
    seen: list[set[int]] = []


MEASURED = Stream("measured", Measured, key=lambda measured: measured.at.isoformat())
SENSOR = "0b0d5c4e-6b3f-4a55-9a43-0c8f5d1c7f11"
AT = "2026-01-31T23:59:59"


@pytest.mark.parametrize(
    ("fields", "path", "fault"),
    [
        ({"at": f"{AT}.9999999Z"}, ".at", "more than 6 digits"),
        ({"hour": "23:59:59.9999999Z"}, ".hour", "more than 6 digits"),
        ({"took": "PT1.0000001S"}, ".took", "more than 6 digits"),
        ({"by_time": [{}, {f"{AT}.1234567": 1}]}, ".by_time[1]", "more than 6 digits"),
        ({"by_time": [{f"{AT}Z": 1, f"{AT}+00:00": 2}]}, ".by_time[0]", "two names of the object"),
        ({"by_sensor": {SENSOR: 1, SENSOR.upper(): 2}}, ".by_sensor", "two names of the object"),
        ({"seen": [[1], [1, 2, 1]]}, ".seen[1]", "elements of the set"),
        ({"by_sensor": {"first": 1}}, ".by_sensor", "Invalid UUID as a name"),
    ],
)
async def test_what_decoding_would_round_or_drop_is_refused_at_its_place(
    fields: dict[str, Any], path: str, fault: str
) -> None:
    good, bad = (msgspec.json.encode({"at": AT, **more}) for more in ({}, fields))
    with pytest.raises(BadRecords, match=fault) as refused:
        read_values(MEASURED, bad)
    assert refused.value.path == f"${path}"
    with pytest.raises(BadRecords, match=fault) as refused:
        read_values(MEASURED, b"[%b, %b]" % (good, bad))
    assert refused.value.path == f"$[1]{path}"
    answers = await answers_to(FakePublisher(), good + b"\n" + bad + b"\n" + good, stream=MEASURED)
    assert [isinstance(answer, BadLine) for answer in answers] == [False, True, False]


def test_what_decoding_keeps_exactly_is_taken() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH - 10):
        deep = {"a": deep}
    given: dict[str, Any] = {
        "at": f"{AT}.1234560000+05:30",
        "hour": "23:59:59.999999Z",
        "took": "PT1.5S",
        "by_sensor": {SENSOR: 1.5, SENSOR.replace("1", "2"): 2.5},
        "by_time": [{f"{AT}Z": deep, f"{AT}.1Z": f"{AT}.9999999"}],
        "seen": [[1, 2], []],
    }
    (measured,) = read_values(MEASURED, msgspec.json.encode(given))
    assert msgspec.to_builtins(measured) == given | {
        "at": f"{AT}.123456+05:30",
        "by_time": [{f"{AT}Z": deep, f"{AT}.100000Z": f"{AT}.9999999"}],
    }


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_a_body_is_read_or_nested_too_deeply_however_deep_it_is(opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    taken, faults = 0, set()
    for depth in range(700, 1_100):
        one = b'{"id":"a","payload":' + opening * depth + b"1" + closing * depth + b"}"
        for body in (one, b"[" + one + b"]"):
            try:
                taken += len(below(depth % 40, partial(read_records, LOOSE, body, 1_000_000))[0])
            except BadRecords as error:
                faults.add(str(error))
    assert not taken
    too_deep_for_python = {"the body is nested too deeply"}  # nowhere here since Python 3.12
    assert faults - too_deep_for_python == {"the record is nested more than 500 levels deep"}


@pytest.mark.parametrize("opening", [b"[", b'{"]a":', b'[{"\\"]":'])
async def test_a_record_of_the_greatest_depth_is_sent_and_read_from_anywhere_and_a_deeper_one_is_refused(
    opening: bytes,
) -> None:
    closing = {b"[": b"]", b'{"]a":': b"}", b'[{"\\"]":': b"}]"}[opening]

    def record(depth: int) -> bytes:
        levels = (depth - 1) // (len(closing))
        return b'{"id":"a","payload":' + opening * levels + b"1" + closing * levels + b"}"

    greatest = record(MAX_DEPTH - (MAX_DEPTH - 1) % len(closing))
    fake = FakePublisher()
    fake.max_record_bytes = 1_000_000
    answers = await answers_to(fake, greatest, b"\n", record(MAX_DEPTH + len(closing)), stream=LOOSE)
    assert answers == [
        Receipt("a", 0, 0, 1),
        BadLine(2, "the record is nested more than 500 levels deep - at `$`"),
    ]
    assert encode(below(400, partial(LOOSE.decode, fake.published[0]))) == greatest


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Event, False),
        (Priced, False),
        (Loose, True),
        (list[dict[str, tuple[int, msgspec.Raw]]], True),
        (Priced | None, False),
        (dict[str, Annotated[list[Any], msgspec.Meta(max_length=3)]], True),
    ],
)
def test_only_types_with_parts_that_may_be_anything_are_searched_for_deep_records(kind: object, expected: bool) -> None:  # noqa: FBT001 - as it is parametrized
    assert nests_freely(msgspec.inspect.type_info(kind)) is expected


@pytest.mark.parametrize(
    "body",
    [
        as_json(**{"x" * 1_000_000: 1}),
        b'{"id":"a","payload":{"%b":1,"%b":2}}' % (b"x" * 1_000_000, b"x" * 1_000_000),
        b'{"id":"a","payload":"%b","payload":1}' % (b"x" * 1_000_000),
    ],
)
def test_an_error_quotes_no_more_of_a_body_than_a_caller_reads(body: bytes) -> None:
    stream: Stream[Any] = LOOSE if b"payload" in body else EVENTS
    with pytest.raises(BadRecords) as refused:
        read_values(stream, body)
    assert len(str(refused.value)) + len(refused.value.path) < 1_000
