import asyncio
import datetime as dt
import decimal
import enum
import uuid
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from apps.chassis.settings import Settings, WrongSetting, read_settings
from apps.producer.generating.generators import generator_of
from contracts.person import PEOPLE
from contracts.stream import BadStream, Stream, check_streams, encode


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


Event = Placed | Cancelled
EVENTS = Stream[Event]("events", Event, key=lambda event: event.event_id)
PLACED = (
    b'{"type":"placed","eventId":"e-1","items":[{"sku":"a","count":2}],"at":"2026-01-31T12:00:00Z","price":"9.99",'
    b'"batch":"0b0d5c4e-6b3f-4a55-9a43-0c8f5d1c7f11","colour":"red","labels":{"x":{"sku":"b","count":1},"y":null}}'
)


@pytest.mark.parametrize("text", [PLACED, b'{"type":"cancelled","event_id":"e-2","reason":""}'])
def test_a_union_of_structs_with_any_fields_is_taken_and_stands_as_it_was_sent(text: bytes) -> None:
    strict = EVENTS.decode_strictly(text)
    assert isinstance(strict, (Placed, Cancelled))
    assert encode(strict) == text
    assert encode(EVENTS.decode(text)) == text
    assert EVENTS.keys_of([strict]) == [strict.event_id.encode()]


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
        EVENTS.decode_strictly(changed)
    if b"size" in after:
        assert EVENTS.decode(changed) == EVENTS.decode(PLACED)


def test_the_example_of_the_documents_is_a_value_of_the_stream() -> None:
    assert EVENTS.example == {"eventId": "e-1", "items": [], "type": "placed"}
    assert EVENTS.decode_strictly(encode(PEOPLE.example and EVENTS.example))
    assert PEOPLE.decode_strictly(encode(PEOPLE.example)).name == "Ada Lovelace"


def test_a_value_has_a_line_about_it() -> None:
    event = EVENTS.decode(PLACED)
    assert EVENTS.summary_of(event) == PLACED.decode()[:200]
    assert Stream[Event]("events", Placed, key=str, summary=lambda _: "one\n two ").summary_of(event) == "one two"


class Linked(msgspec.Struct):
    following: "Linked | None" = None


class Page(msgspec.Struct):
    values: dict[str, Any]


@pytest.mark.parametrize(
    ("streams", "line"),
    [
        ([Stream("Events", Placed, key=str)], "stream 'Events': expected a name of small letters"),
        ([Stream("events/1", Placed, key=str)], "stream 'events/1': expected a name of small letters"),
        ([Stream("basic_producer", Placed, key=str)], "stream 'basic_producer': the name is taken by a call"),
        ([EVENTS, Stream("events", Placed, key=str)], "stream 'events': the name is taken by another stream"),
        (
            [Stream("a-b", Placed, key=str), Stream("a_b", Placed, key=str)],
            "stream 'a_b': the variable A_B_TOPIC belongs to stream 'a-b'",
        ),
        (
            [PEOPLE, Stream("consumer", Placed, key=str)],
            "stream 'consumer': the variable CONSUMER_GROUP_ID belongs to stream 'people'",
        ),
        ([Stream("links", Linked, key=str)], "stream 'links': Linked refers to itself"),
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
    text = b'{"values":{"a":[1,{"b":null}]}}'
    assert encode(pages.decode_strictly(text)) == text


def test_each_stream_has_settings_of_its_own_by_its_name() -> None:
    settings = read_settings({"EVENTS_PARTITIONS": "12", "PEOPLE_TOPIC": "persons"}, [PEOPLE, EVENTS])
    assert (settings.of(EVENTS).topic, settings.of(EVENTS).partitions) == ("events", 12)
    assert settings.of(EVENTS).dead_letter_topic == "events-dlt"
    assert settings.of(EVENTS).group_id == "events-consumer"
    assert (settings.of(PEOPLE).topic, settings.of(PEOPLE).dead_letter_topic) == ("persons", "people-dlt")


@pytest.mark.parametrize("variable", ["PEOPLE_GROUP_ID", "CONSUMER_GROUP_ID"])
def test_the_older_name_of_a_setting_means_the_same(variable: str) -> None:
    assert read_settings({variable: "ours"}, [EVENTS, PEOPLE]).of(PEOPLE).group_id == "ours"


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"EVENTS_PARTITIONS": "0"}, "EVENTS_PARTITIONS: expected a whole number from 1 to 10000, not '0'"),
        ({"EVENTS_TOPIC": "people"}, "EVENTS_TOPIC: must differ from PEOPLE_TOPIC, both are 'people'"),
        ({"EVENTS_TOPIC": "people-dlt-redriven"}, "EVENTS_TOPIC: must differ from DEAD_LETTER_TOPIC"),
        ({"EVENTS_GROUP_ID": "people-consumer"}, "EVENTS_GROUP_ID: must differ from CONSUMER_GROUP_ID"),
        (
            {"PEOPLE_GROUP_ID": "a", "CONSUMER_GROUP_ID": "b"},
            "CONSUMER_GROUP_ID: means the same as PEOPLE_GROUP_ID, and differs from it: set one",
        ),
        ({"STREAMS": "people,order"}, "STREAMS: expected some of people, events, not 'order'"),
    ],
)
def test_settings_of_streams_that_collide_stop_the_start_with_one_line(environment: dict[str, str], line: str) -> None:
    with pytest.raises(WrongSetting) as stopped:
        read_settings(environment, [PEOPLE, EVENTS])
    assert str(stopped.value).startswith(line)


def test_an_instance_may_serve_some_of_the_streams() -> None:
    assert read_settings({"STREAMS": "events"}, [PEOPLE, EVENTS]).served([PEOPLE, EVENTS]) == [EVENTS]
    assert Settings().served([PEOPLE, EVENTS]) == [PEOPLE, EVENTS]


@pytest.mark.anyio
async def test_values_of_any_stream_are_made_up_and_the_event_loop_turns_meanwhile() -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    made = await generator_of(EVENTS)(200)
    turning.cancel()
    assert {type(event) for event in made} == {Placed, Cancelled}
    assert all(EVENTS.decode_strictly(encode(event)) for event in made)
    assert turns > 1
