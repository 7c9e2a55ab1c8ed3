import json
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta, defstruct
from polyfactory.factories.msgspec_factory import MsgspecFactory

from contracts import STREAMS
from contracts.stream import Stream
from tests.event import Event
from tools.compatibility import incompatibilities, unreadable
from tools.schema import file_of, main, schema_of

BACKWARD = "the new version cannot read what the old one wrote"
FORWARD = "the old version cannot read what the new one writes"
BEFORE = {"id": Annotated[str, Meta(min_length=1, max_length=64)], "number": Annotated[int, Meta(ge=0, le=150)]}
"""The fields of the old version, in the tests below."""


class Node(msgspec.Struct):
    value: int
    children: "list[Node]" = []


class OtherNode(msgspec.Struct):
    value: str
    children: "list[OtherNode]" = []


def record(fields: dict[str, Any], **defaults: Any) -> type[msgspec.Struct]:  # noqa: ANN401 - of any type
    """Return a version of a record, with a default for some of its fields."""
    required: list[Any] = [(name, kind) for name, kind in fields.items() if name not in defaults]
    return defstruct("Event", required + [(name, fields[name], value) for name, value in defaults.items()])


def compared(new: type[msgspec.Struct], old: type[msgspec.Struct] | None = None) -> list[tuple[str, str]]:
    """Return the fields on which the versions disagree, each with the direction in which they do."""
    found = incompatibilities(schema_of(old or record(BEFORE)), schema_of(new))
    lines = [line.rpartition(": ") for line in found]
    return [(why.split()[0].removeprefix("$."), direction) for why, _, direction in lines]


EACH_STREAM = pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)


@EACH_STREAM
def test_the_committed_schema_is_that_of_the_stream(stream: Stream[Any]) -> None:
    committed = json.loads(file_of(stream).read_text())
    assert committed == schema_of(stream.record_type), "run `uv run just schema`, and commit what it writes"


@EACH_STREAM
def test_a_record_can_live_beside_the_one_whose_schema_is_committed(stream: Stream[Any]) -> None:
    assert incompatibilities(json.loads(file_of(stream).read_text()), schema_of(stream.record_type)) == []


@pytest.mark.parametrize(
    ("new", "disagreements"),
    [
        pytest.param(record(BEFORE), [], id="nothing changed"),
        pytest.param(record({**BEFORE, "nick": str}, nick=""), [], id="a field with a default added"),
        pytest.param(record({**BEFORE, "nick": str}), [("nick", BACKWARD)], id="a required field added"),
        pytest.param(record({"id": BEFORE["id"]}), [("number", FORWARD)], id="a required field removed"),
        pytest.param(record(BEFORE, number=0), [("number", FORWARD)], id="a required field given a default"),
        pytest.param(
            record({"id": BEFORE["id"], "years": BEFORE["number"]}),
            [("years", BACKWARD), ("number", FORWARD)],
            id="a field renamed",
        ),
        pytest.param(
            record({**BEFORE, "number": str}),
            [("number", BACKWARD), ("number", FORWARD)],
            id="the type of a field changed",
        ),
        pytest.param(
            record({**BEFORE, "number": Annotated[int, Meta(ge=0, le=99)]}), [("number", BACKWARD)], id="narrowed"
        ),
        pytest.param(
            record({**BEFORE, "number": Annotated[int, Meta(ge=0, le=200)]}), [("number", FORWARD)], id="widened"
        ),
        pytest.param(
            record({**BEFORE, "number": Annotated[int, Meta(ge=0)]}), [("number", FORWARD)], id="a bound removed"
        ),
        pytest.param(
            record({**BEFORE, "number": Annotated[int, Meta(ge=1, le=200)]}),
            [("number", BACKWARD), ("number", FORWARD)],
            id="a range moved",
        ),
        pytest.param(
            record({**BEFORE, "number": Annotated[float, Meta(ge=0, le=150)]}),
            [("number", FORWARD)],
            id="integer to number",
        ),
        pytest.param(record({**BEFORE, "number": BEFORE["number"] | None}), [("number", FORWARD)], id="null allowed"),
        pytest.param(
            record({**BEFORE, "id": Annotated[str, Meta(min_length=1, max_length=64, pattern="x")]}),
            [("id", BACKWARD)],
            id="a pattern added",
        ),
        pytest.param(
            record({**BEFORE, "id": Literal["a", "b"]}), [("id", BACKWARD)], id="only some values taken any more"
        ),
        pytest.param(
            record({**BEFORE, "id": Literal["a", ""]}),
            [("id", BACKWARD), ("id", FORWARD)],
            id="only some values, one of them refused before",
        ),
    ],
)
def test_each_field_on_which_two_versions_disagree_is_named_with_the_direction(
    new: type[msgspec.Struct], disagreements: list[tuple[str, str]]
) -> None:
    assert compared(new) == disagreements


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (Literal["a"], Literal["a", "b"], '$.it may be "b", which is not taken'),
        (list[int], list[str], "$.it[] may be string, expected integer"),
        (list, list[int], "$.it[] may be array or boolean"),
        (tuple[int, str], tuple[int, int], "$.it[1] may be string"),
        (tuple[int, int], tuple[int], "$.it has 2 places of their own, expected 1"),
        (dict[str, int], dict[str, str], "$.it.* may be integer"),
        (Annotated[datetime, Meta(tz=True)], str, "$.it is written with format not given, and read with date-time"),
        (bytes, str, "$.it is written with contentEncoding not given, and read with base64"),
        (Node, OtherNode, "$.it.value may be integer, expected string"),
        (Node, dict[str, int], "$.it.children may be array, expected integer"),
        (dict[str, int], Node, "$.it.value is required, and not written"),
        (defstruct("Inner", [("a", int)]), defstruct("Inner", [("a", str)]), "$.it.a may be integer"),
    ],
)
def test_types_within_types_are_compared_as_well(old: Any, new: Any, why: str) -> None:  # noqa: ANN401 - types
    found = incompatibilities(schema_of(record({"it": old})), schema_of(record({"it": new})))
    assert why in "\n".join(found)
    assert incompatibilities(schema_of(record({"it": old})), schema_of(record({"it": old}))) == []


def test_a_reader_that_refuses_unknown_fields_can_not_be_given_more() -> None:
    strict = defstruct("Event", list(BEFORE.items()), forbid_unknown_fields=True)
    more = record({**BEFORE, "nick": str}, nick="")
    assert unreadable(schema_of(more), schema_of(strict)) == ["$.nick is written, and refused as unknown"]


def test_what_cannot_be_judged_is_not_taken_to_be_fine() -> None:
    assert unreadable({"type": "integer", "not": {"const": 3}}, {"type": "integer"}) == [
        "$ cannot be judged, as it has not"
    ]


VERSIONS = {
    "the same": record(BEFORE),
    "one more field": record({**BEFORE, "nick": str, "since": datetime | None}, nick="", since=None),
    "age unbounded": record({**BEFORE, "number": int}),
    "age narrowed": record({**BEFORE, "number": Annotated[int, Meta(ge=10, le=20)]}),
    "age as text": record({**BEFORE, "number": str}),
    "age as a number": record({**BEFORE, "number": Annotated[float, Meta(ge=0, le=150)]}),
    "age or null": record({**BEFORE, "number": BEFORE["number"] | None}),
    "without age": record({"id": BEFORE["id"]}),
    "a choice of ids": record({**BEFORE, "id": Literal["a", "b"]}),
}


@cache
def written_by(writer: str) -> list[bytes]:
    factory = MsgspecFactory.create_factory(VERSIONS[writer])
    factory.seed_random(1)
    return [msgspec.json.encode(one) for one in factory.batch(200)]


@pytest.mark.parametrize("writer", VERSIONS)
@pytest.mark.parametrize("reader", VERSIONS)
def test_what_is_reported_as_readable_is_read_whatever_stands_in_it(writer: str, reader: str) -> None:
    refused = 0
    for one in written_by(writer):
        try:
            msgspec.json.decode(one, type=VERSIONS[reader])
        except msgspec.ValidationError:
            refused += 1
    assert bool(refused) == bool(unreadable(schema_of(VERSIONS[writer]), schema_of(VERSIONS[reader])))


def test_a_version_that_cannot_live_beside_the_old_one_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    streams = [Stream("events", Event, key=lambda event: event.id)]
    file = tmp_path / "events.schema.json"
    old = json.dumps(schema_of(record(BEFORE)))
    file.write_text(old)
    assert main([], streams, tmp_path) == 1
    assert file.read_text() == old
    refusal = capsys.readouterr().err
    assert f"$.text is required, and not written: {BACKWARD}" in refusal
    assert "Only when nothing of the old version is left" in refusal
    assert refusal.endswith("`uv run just schema --break`\n")
    assert main(["--break"], streams, tmp_path) == 0
    assert json.loads(file.read_text()) == schema_of(Event)


def test_writing_schemas_that_did_not_change_changes_nothing() -> None:
    before = [file_of(stream).read_bytes() for stream in STREAMS]
    assert main([]) == 0
    assert [file_of(stream).read_bytes() for stream in STREAMS] == before
