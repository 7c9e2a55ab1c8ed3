import asyncio
import datetime as dt
import decimal
import enum
import json
import threading
import typing
import uuid
from collections import deque
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta
from samples import LONG, an_event, as_json, everything_else_has_run, fields_of_an_event

from apps.chassis.setting_reading import read_settings
from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import Settings
from apps.producer.generating.generators import CannotGenerate, generator_of
from contracts.stream import BadStream, Stream, check_streams, encode
from tests.event import Event


class Colour(enum.Enum):
    RED = "red"


class Item(msgspec.Struct, frozen=True):
    sku: str
    count: Annotated[int, Meta(ge=1)] = 1


class Placed(msgspec.Struct, frozen=True, tag="placed", rename="camel"):
    event_id: Annotated[str, Meta(min_length=1, examples=["e-1"])]
    items: list[Item]
    at: dt.datetime | None = None
    price: decimal.Decimal = decimal.Decimal(0)
    batch: uuid.UUID | None = None
    colour: Colour = Colour.RED
    labels: dict[str, Item | None] = {}


class Cancelled(msgspec.Struct, frozen=True, tag="cancelled"):
    event_id: str
    reason: str = ""


Change = Placed | Cancelled
CHANGES = Stream[Change]("changes", Change, key=lambda change: change.event_id)
EVENTS = Stream(
    "events",
    Event,
    key=lambda event: event.id,
    variables={"dead_letter_topic": "DEAD_LETTER_TOPIC", "group_id": "CONSUMER_GROUP_ID"},
)
PLACED = (
    b'{"type":"placed","eventId":"e-1","items":[{"sku":"a","count":2}],"at":"2026-01-31T12:00:00Z","price":"9.99",'
    b'"batch":"0b0d5c4e-6b3f-4a55-9a43-0c8f5d1c7f11","colour":"red","labels":{"x":{"sku":"b","count":1},"y":null}}'
)


def test_documents_of_a_strict_type_have_the_names_of_the_declared_types() -> None:
    assert {"Placed", "Cancelled"} <= msgspec.json.schema(CHANGES.strict_type)["$defs"].keys()


@pytest.mark.parametrize("text", [PLACED, b'{"type":"cancelled","event_id":"e-2","reason":""}'])
def test_a_union_of_structs_with_any_fields_is_taken_and_stands_as_it_was_sent(text: bytes) -> None:
    strict = CHANGES.decode_strictly(text)
    assert isinstance(strict, (Placed, Cancelled))
    assert encode(strict) == text
    assert encode(CHANGES.decode(text)) == text
    assert CHANGES.keys_of([strict]) == [strict.event_id.encode()]


@pytest.mark.parametrize(
    ("before", "after", "place"),
    [
        (b'"sku":"a"', b'"sku":"a","size":1', r"`size` - at `\$\.items\[0\]`"),
        (b'"sku":"b"', b'"sku":"b","size":1', r"`size` - at `\$\.labels\[\.\.\.\]`"),
        (b'"colour":"red"', b'"colour":"red","size":1', "`size`"),
        (b'"count":2', b'"count":0', r"\$\.items\[0\]\.count"),
        (b'"placed"', b'"sold"', r"\$\.type"),
    ],
)
def test_an_unknown_field_is_refused_at_any_depth_of_what_is_sent_and_ignored_in_what_is_read(
    before: bytes, after: bytes, place: str
) -> None:
    changed = PLACED.replace(before, after, 1)
    with pytest.raises(msgspec.ValidationError, match=place):
        CHANGES.decode_strictly(changed)
    if b"size" in after:
        assert CHANGES.decode(changed) == CHANGES.decode(PLACED)


def test_the_example_of_the_documents_is_a_value_of_the_stream() -> None:
    assert CHANGES.example == {"eventId": "e-1", "items": [], "type": "placed"}
    assert CHANGES.decode_strictly(encode(EVENTS.example and CHANGES.example))
    assert EVENTS.decode_strictly(encode(EVENTS.example)).text == "It rains."


def test_the_example_has_fields_of_each_format() -> None:
    class Invoice(msgspec.Struct):
        number: uuid.UUID
        day: dt.date
        at: Annotated[dt.datetime, Meta(tz=True)]
        hour: Annotated[dt.time, Meta(tz=True)]
        total: decimal.Decimal
        due: dt.timedelta

    invoices = Stream("invoices", Invoice, key=lambda invoice: str(invoice.number))
    assert invoices.decode_strictly(encode(invoices.example)).total == decimal.Decimal("1.50")


def test_a_value_has_a_line_about_it() -> None:
    event = CHANGES.decode(PLACED)
    assert CHANGES.summary_of(event) == PLACED.decode()[:200]
    assert Stream[Change]("changes", Placed, key=str, summary=lambda _: "one\n two ").summary_of(event) == "one two"


class Linked(msgspec.Struct):
    following: "Linked | None" = None


class Row(msgspec.Struct, array_like=True):
    cell: str


class Page(msgspec.Struct):
    values: dict[str, Any]
    more: typing.Dict  # type: ignore[type-arg]  # noqa: UP006 - as some write it


@pytest.mark.parametrize(
    ("streams", "line"),
    [
        ([Stream("Changes", Placed, key=str)], "stream 'Changes': expected a name of lower-case letters"),
        ([Stream("changes/1", Placed, key=str)], "stream 'changes/1': expected a name of lower-case letters"),
        ([Stream("basic_producer", Placed, key=str)], "stream 'basic_producer': the name is taken by a call"),
        ([CHANGES, Stream("changes", Placed, key=str)], "stream 'changes': the name is taken by another stream"),
        (
            [Stream("a-b", Placed, key=str), Stream("a_b", Placed, key=str)],
            "stream 'a_b': the variable A_B_TOPIC belongs to stream 'a-b'",
        ),
        (
            [EVENTS, Stream("consumer", Placed, key=str)],
            "stream 'consumer': the variable CONSUMER_GROUP_ID belongs to stream 'events'",
        ),
        ([Stream("links", Linked, key=str)], "stream 'links': Linked refers to itself"),
        ([Stream("rows", Row, key=str)], "stream 'rows': expected Structs that are objects in JSON, got Row"),
        ([Stream("numbers", int, key=str)], "stream 'numbers': expected Structs that are objects in JSON, got int"),
        (
            [Stream("maybe", Placed | None, key=str)],
            "stream 'maybe': expected Structs that are objects in JSON, got None",
        ),
        (
            [Stream("queues", msgspec.defstruct("Queued", [("waiting", deque[int])]), key=str)],
            "stream 'queues': deque: JSON cannot be decoded to it; use list",
        ),
        (
            [Stream("large", msgspec.defstruct("Large", [("size", Annotated[int, Meta(ge=2**63)])]), key=str)],
            "stream 'large': Large.size: Integer bounds constraints",
        ),
    ],
)
def test_streams_that_cannot_live_side_by_side_stop_the_start_with_one_line(
    streams: list[Stream[Any]], line: str
) -> None:
    with pytest.raises(BadStream) as stopped:
        check_streams(streams)
    assert str(stopped.value).startswith(line)
    assert len(str(stopped.value).splitlines()) == 1


def test_a_free_form_field_takes_anything() -> None:
    pages = Stream("pages", Page, key=str)
    check_streams([pages])
    text = b'{"values":{"a":[1,{"b":null}]},"more":{"c":2}}'
    assert encode(pages.decode_strictly(text)) == text


def test_each_stream_has_settings_of_its_own_by_its_name() -> None:
    settings = read_settings({"CHANGES_PARTITIONS": "12", "EVENTS_TOPIC": "others"}, [EVENTS, CHANGES])
    assert (settings.of(CHANGES).topic, settings.of(CHANGES).partitions) == ("changes", 12)
    assert settings.of(CHANGES).dead_letter_topic == "changes-dlt"
    assert settings.of(CHANGES).group_id == "changes-consumer"
    assert (settings.of(EVENTS).topic, settings.of(EVENTS).dead_letter_topic) == ("others", "events-dlt")


@pytest.mark.parametrize("variable", ["EVENTS_GROUP_ID", "CONSUMER_GROUP_ID"])
def test_the_older_name_of_a_setting_means_the_same(variable: str) -> None:
    assert read_settings({variable: "ours"}, [CHANGES, EVENTS]).of(EVENTS).group_id == "ours"


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"CHANGES_PARTITIONS": "0"}, "CHANGES_PARTITIONS: expected a whole number from 1 to 10000, got '0'"),
        ({"CHANGES_TOPIC": "events"}, "CHANGES_TOPIC: must differ from EVENTS_TOPIC, both are 'events'"),
        ({"CHANGES_TOPIC": "events-dlt-redriven"}, "CHANGES_TOPIC: must differ from DEAD_LETTER_TOPIC"),
        ({"CHANGES_GROUP_ID": "events-consumer"}, "CHANGES_GROUP_ID: must differ from CONSUMER_GROUP_ID"),
        (
            {"EVENTS_GROUP_ID": "a", "CONSUMER_GROUP_ID": "b"},
            "CONSUMER_GROUP_ID: means the same as EVENTS_GROUP_ID, and differs from it: set one",
        ),
        ({"STREAMS": "events,order"}, "STREAMS: expected some of events, changes, got 'order'"),
    ],
)
def test_settings_of_streams_that_collide_stop_the_start_with_one_line(environment: dict[str, str], line: str) -> None:
    with pytest.raises(WrongSetting) as stopped:
        read_settings(environment, [EVENTS, CHANGES])
    assert str(stopped.value).startswith(line)


def test_an_instance_may_serve_some_of_the_streams() -> None:
    assert read_settings({"STREAMS": "changes"}, [EVENTS, CHANGES]).served([EVENTS, CHANGES]) == [CHANGES]
    assert Settings().served([EVENTS, CHANGES]) == [EVENTS, CHANGES]


async def made_of(stream: Stream[Any], number: int) -> list[Any]:
    generate = await generator_of(stream)
    chunks = generate(number, number, asyncio.Semaphore())
    return [value async for chunk in chunks for value in chunk]


@pytest.mark.anyio
async def test_values_of_any_stream_are_made_up_and_the_event_loop_turns_in_between() -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    made = await made_of(CHANGES, 200)
    turning.cancel()
    assert {type(event) for event in made} == {Placed, Cancelled}
    assert all(CHANGES.decode_strictly(encode(event)) for event in made)
    assert turns > 1


class Timed(msgspec.Struct, frozen=True):
    at: Annotated[dt.datetime, Meta(tz=True)]
    local: Annotated[dt.datetime, Meta(tz=False)]
    any: dt.datetime
    hour: Annotated[dt.time, Meta(tz=True)]
    day: dt.date
    within: dict[str, list[Annotated[dt.datetime, Meta(tz=True)]]]
    perhaps: Annotated[dt.datetime, Meta(tz=True)] | msgspec.UnsetType


@pytest.mark.anyio
async def test_values_that_are_made_up_are_such_as_a_caller_may_send() -> None:
    timed = Stream("timed", Timed, key=str)
    made = await made_of(timed, 200)
    assert len([timed.decode_strictly(encode(one)) for one in made]) == 200


class Slow(msgspec.Struct):
    id: str

    def __post_init__(self) -> None:
        GOES_ON.wait(LONG)


GOES_ON = threading.Event()


@pytest.mark.anyio
async def test_however_many_calls_generate_other_work_finds_a_thread() -> None:
    slow = Stream("slow", Slow, key=lambda slow: slow.id)
    generating = asyncio.gather(*(made_of(slow, 1) for _ in range(100)))
    await everything_else_has_run()
    try:
        async with asyncio.timeout(LONG / 2):
            assert await asyncio.to_thread(int, "1") == 1
    finally:
        GOES_ON.set()
    assert len(await generating) == 100


class Unmakeable(msgspec.Struct, frozen=True):
    raw: msgspec.Raw


@pytest.mark.anyio
async def test_where_no_value_can_be_made_up_none_is_and_the_reason_is_reported() -> None:
    with pytest.raises(CannotGenerate, match=r"^no valid raws can be generated: "):
        await made_of(Stream("raws", Unmakeable, key=str), 1)


class Picky(msgspec.Struct):
    id: str | None = None

    def __post_init__(self) -> None:
        raise LookupError("it takes nothing")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (Stream("picky", Picky, key=str), "it takes nothing"),
        (Stream("keyless", Item, key=lambda _: None), "the record has no key"),  # type: ignore[arg-type, return-value]  # what the test is about
    ],
)
async def test_where_code_of_the_contract_fails_for_each_value_none_is_made_up(
    stream: Stream[Any], reason: str
) -> None:
    with pytest.raises(CannotGenerate, match=reason):
        await made_of(stream, 1)


FIELDS_OF_AN_EVENT = ["id", "number", "text"]
DECODERS = pytest.mark.parametrize("decoder", [EVENTS.decode, EVENTS.decode_strictly], ids=["tolerant", "strict"])
ANYTHING = st.text(st.characters(exclude_categories=["Cs"]))


def test_the_record_is_utf_8_and_not_escaped() -> None:
    assert '"text":"Žofie 日本 🙂"'.encode() in encode(an_event(text="Žofie 日本 🙂"))


@DECODERS
def test_half_a_surrogate_pair_is_refused_as_it_could_not_be_written_again(decoder: Any) -> None:  # noqa: ANN401 - msgspec's method
    with pytest.raises(msgspec.DecodeError):
        decoder(as_json().replace(b"Ada", b"\\ud800"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANYTHING,
    lambda inner: st.lists(inner) | st.dictionaries(ANYTHING, inner),
    max_leaves=10,
)
NEARLY_EVENTS = st.dictionaries(st.sampled_from(FIELDS_OF_AN_EVENT) | ANYTHING, JSON).map(
    lambda odd: fields_of_an_event(**odd)
)


@pytest.mark.slow
@given(NEARLY_EVENTS.map(lambda fields: json.dumps(fields).encode()) | st.binary() | JSON.map(msgspec.json.encode))
def test_any_value_is_an_event_or_refused_and_what_a_producer_takes_a_consumer_takes(value: bytes) -> None:
    refused = (msgspec.DecodeError, UnicodeDecodeError)
    try:
        strict: Event | None = EVENTS.decode_strictly(value)
    except refused:
        strict = None
    try:
        event = EVENTS.decode(value)
    except refused:
        assert strict is None
        return
    assert strict is None or encode(strict) == encode(event)
    assert EVENTS.decode(encode(event)) == event
    assert encode(EVENTS.decode_strictly(encode(event))) == encode(event)
    assert 1 <= len(event.id) <= 64
    assert 0 <= event.number <= 150
