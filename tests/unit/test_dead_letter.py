import struct
from collections.abc import Sequence
from dataclasses import replace as dataclass_replace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import Stored

from contracts.dead_letter import (
    APPENDED,
    MAX_ERROR_CHARACTERS,
    NAMES,
    NAMES_ALWAYS,
    NAMES_BEFORE,
    OF_RETRIES,
    ORIGIN,
    POISON,
    REDRIVEN_FOR,
    REFUSED,
    ROUNDS,
    TRIES,
    DeadLetter,
    Header,
    Target,
    describe,
    first_place,
    first_written,
    history,
    read,
    redrive_headers,
    redriven_for,
    written_again,
)
from contracts.record import Place

SPRINGS = st.sampled_from([*APPENDED, *OF_RETRIES, *NAMES, "kafka_dlt-exception-stacktrace"])
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SOME_BYTES = st.none() | st.binary()
HEADERS = st.lists(st.tuples(TEXT | st.sampled_from(NAMES), SOME_BYTES), max_size=20).map(tuple)
INT32 = st.integers(0, 2**31 - 1)
INT64 = st.integers(0, 2**63 - 1)
DEAD_LETTERS = st.builds(
    DeadLetter,
    key=SOME_BYTES,
    value=SOME_BYTES,
    headers=HEADERS,
    topic=TEXT,
    partition=INT32,
    offset=INT64,
    timestamp=INT64 | st.just(-1),
    group=TEXT,
    error_type=TEXT,
    error=TEXT,
    tries=INT32,
    verdict=st.sampled_from([POISON, REFUSED]),
    stack=st.none() | TEXT,
    written=st.none() | INT64,
)


def a_dead_letter() -> DeadLetter:
    return DeadLetter(
        key=b"key",
        value=b"not an event",
        headers=(("trace", b"\x00\xff"), ("trace", None)),
        topic="events",
        partition=3,
        offset=2**40 + 5,
        timestamp=1_700_000_000_123,
        group="events-consumer",
        error_type="msgspec.ValidationError",
        error="Expected `int`",
        tries=1,
        verdict=REFUSED,
    )


def with_content(headers: list[Header], name: str, content: bytes | None) -> list[Header]:
    return [(each, content if each == name else old) for each, old in headers]


@given(DEAD_LETTERS)
def test_a_dead_letter_is_read_as_it_was_written(letter: DeadLetter) -> None:
    assert read(letter.key, letter.value, letter.all_headers()) == letter


@given(DEAD_LETTERS, DEAD_LETTERS)
def test_a_dead_letter_of_a_dead_letter_keeps_both_stories(first: DeadLetter, second: DeadLetter) -> None:
    again = msgspec.structs.replace(second, key=first.key, value=first.value, headers=tuple(first.all_headers()))
    latest = read(again.key, again.value, again.all_headers())
    assert latest == again
    assert read(latest.key, latest.value, latest.headers) == first


def test_the_headers_of_the_record_stand_first_and_untouched() -> None:
    record = dataclass_replace(Stored(), headers=(("a", None), ("a", b""), ("a", b"\xff"), ("content-type", b"x")))
    letter = msgspec.structs.replace(a_dead_letter(), headers=record.headers)
    assert letter.all_headers()[:4] == list(record.headers)
    assert [name for name, _ in letter.all_headers()[4:]] == list(NAMES_ALWAYS)


def test_what_became_of_the_record_is_encoded_as_spring_kafka_does() -> None:
    headers = dict(a_dead_letter().all_headers())
    assert headers["kafka_dlt-original-topic"] == b"events"
    assert headers["kafka_dlt-original-partition"] == b"\x00\x00\x00\x03"
    assert headers["kafka_dlt-original-offset"] == b"\x00\x00\x01\x00\x00\x00\x00\x05"
    assert headers["kafka_dlt-original-timestamp"] == (1_700_000_000_123).to_bytes(8, "big")
    assert headers["kafka_dlt-original-consumer-group"] == b"events-consumer"
    assert headers["kafka_dlt-exception-fqcn"] == b"msgspec.ValidationError"
    assert headers["kafka_dlt-exception-message"] == b"Expected `int`"
    assert headers["kafka_deliveryAttempt"] == struct.pack(">i", 1)


@given(DEAD_LETTERS)
def test_a_letter_of_an_earlier_version_is_read_as_it_was_written_and_has_no_verdict(letter: DeadLetter) -> None:
    earlier = msgspec.structs.replace(letter, verdict=None, stack=None, written=None)
    assert read(letter.key, letter.value, earlier.all_headers()) == earlier
    assert [name for name, _ in earlier.all_headers()[-len(NAMES_BEFORE) :]] == [*NAMES_BEFORE]


@given(DEAD_LETTERS, INT64, INT64)
def test_a_letter_that_is_written_again_is_the_same_and_knows_when_it_was_first_written(
    letter: DeadLetter, first: int, second: int
) -> None:
    letter = msgspec.structs.replace(letter, written=None)
    headers = letter.all_headers()
    assert first_written(headers, first) == first
    once = written_again(headers, first)
    twice = written_again(once, second)
    assert once == twice
    assert first_written(twice, second) == first
    again = read(letter.key, letter.value, twice)
    assert msgspec.structs.replace(again, written=None) == letter
    assert redrive_headers(again) == redrive_headers(letter)


INT = struct.Struct(">i").pack
LONG = struct.Struct(">q").pack


def spring_headers() -> list[Header]:
    """Return the headers that Spring's DeadLetterPublishingRecoverer appends, in its order."""
    return [
        ("kafka_dlt-exception-fqcn", b"org.springframework.kafka.listener.ListenerExecutionFailedException"),
        ("kafka_dlt-exception-cause-fqcn", b"java.lang.IllegalStateException"),
        ("kafka_dlt-exception-message", b"Listener failed"),
        ("kafka_dlt-exception-stacktrace", b"org.springframework... at ..."),
        ("kafka_dlt-original-topic", b"events"),
        ("kafka_dlt-original-partition", INT(3)),
        ("kafka_dlt-original-offset", LONG(12)),
        ("kafka_dlt-original-timestamp", LONG(1_700_000_000_123)),
        ("kafka_dlt-original-timestamp-type", b"CreateTime"),
        ("kafka_dlt-original-consumer-group", b"events-consumer"),
    ]


OWN: tuple[Header, ...] = (("trace", b"\x00\xff"), ("trace", None))


@given(st.permutations(spring_headers()), st.integers(0, 10))
def test_a_dead_letter_of_spring_is_read_by_the_names_of_its_headers_in_any_order(
    headers: list[Header], place: int
) -> None:
    letter = read(b"key", b"value", [*headers[:place], *OWN, *headers[place:]])
    assert letter == DeadLetter(
        key=b"key",
        value=b"value",
        headers=OWN,
        topic="events",
        partition=3,
        offset=12,
        timestamp=1_700_000_000_123,
        group="events-consumer",
        error_type="org.springframework.kafka.listener.ListenerExecutionFailedException",
        error="Listener failed",
        tries=None,
        stack="org.springframework... at ...",
    )


@pytest.mark.parametrize("missing", [name for name, _ in spring_headers()])
def test_what_a_dead_letter_does_not_say_is_none_and_all_else_is_read(missing: str) -> None:
    whole = read(b"key", b"value", [*OWN, *spring_headers()])
    letter = read(b"key", b"value", [*OWN, *(one for one in spring_headers() if one[0] != missing)])
    differing = [field for field in letter.__struct_fields__ if getattr(letter, field) != getattr(whole, field)]
    assert len(differing) <= 1
    if missing != "kafka_dlt-exception-fqcn":  # its cause says as much
        assert [getattr(letter, field) for field in differing] in ([], [None])
    assert letter.headers == OWN


def test_a_record_that_says_nothing_of_itself_is_a_dead_letter_of_which_nothing_is_known() -> None:
    assert read(None, b"value", OWN) == DeadLetter(None, b"value", OWN, None, None, None, None, None, None, None, None)


def test_of_headers_that_are_repeated_the_last_counts_and_the_older_ones_stay_with_the_record() -> None:
    older = [("kafka_dlt-original-topic", b"elsewhere"), ("kafka_dlt-original-partition", INT(9))]
    letter = read(None, None, [*OWN, *older, *spring_headers()])
    assert (letter.topic, letter.partition) == ("events", 3)
    assert letter.headers == (*OWN, *older)


def test_what_springs_retry_topics_add_on_the_way_is_not_taken_for_the_records_own() -> None:
    letter = read(
        b"key",
        b"value",
        [
            *OWN,
            ("kafka_original-topic", b"events"),
            ("kafka_original-partition", INT(1)),
            ("kafka_original-offset", LONG(2)),
            ("kafka_original-timestamp", LONG(3)),
            ("kafka_original-timestamp-type", b"CreateTime"),
            ("kafka_original-consumer-group", b"group"),
            ("retry_topic-attempts", INT(2)),
            ("retry_topic-backoff-timestamp", b"\x01\x8c\x00\x00\x00\x00"),
            ("kafka_exception-fqcn", b"java.lang.Error"),
            ("retry_topic-attempts", INT(3)),
            ("kafka_exception-message", b"wrong"),
            ("springDeserializerExceptionValue", b"\xac\xed"),
        ],
    )
    assert letter == DeadLetter(b"key", b"value", OWN, "events", 1, 2, 3, "group", "java.lang.Error", "wrong", 3)


def test_a_letter_of_spring_of_a_record_that_was_sent_back_still_reports_how_often_that_was() -> None:
    once = redrive_headers(msgspec.structs.replace(a_dead_letter(), headers=OWN, tries=4))
    for attempt in ([], [(TRIES, INT(2))]):
        letter = read(b"key", b"value", [*once, *attempt, ("traced-by", b"another"), *spring_headers()])
        assert letter.tries == (4 + 2 if attempt else None)
        own, tries, rounds = history(letter.headers)
        assert (tuple(own), tries, rounds) == ((*OWN, ("traced-by", b"another")), 4, 1)
        again = redrive_headers(letter)
        assert [name for name, _ in again].count(ROUNDS) == 1
        assert history(again)[1:] == (4 + 2 if attempt else 4 + 1, 2)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"3", b"\x00" * 9, b"\xff" * 4, b"\xff" * 8],
    ids=["null", "empty", "as text", "long", "-1", "-1L"],
)
@pytest.mark.parametrize("name", ["partition", "offset"])
@pytest.mark.parametrize("headers", [a_dead_letter().all_headers(), spring_headers()], ids=["ours", "Spring's"])
def test_a_number_that_is_none_is_not_known_and_all_else_is_read(
    headers: list[Header], name: str, content: bytes | None
) -> None:
    letter = read(b"key", b"value", with_content(headers, f"kafka_dlt-original-{name}", content))
    assert getattr(letter, name) is None
    assert letter.topic == "events"
    assert letter.group == "events-consumer"


def test_text_that_is_no_utf_8_is_escaped_and_what_is_huge_is_cut() -> None:
    headers = with_content(spring_headers(), "kafka_dlt-original-topic", b"peo\xffple")
    letter = read(None, None, with_content(headers, "kafka_dlt-exception-message", b"x" * 1_000_000))
    assert letter.topic == "peo\\xffple"
    assert letter.error == "x" * MAX_ERROR_CHARACTERS + "…"


def test_an_error_that_cannot_be_encoded_is_written_all_the_same() -> None:
    letter = msgspec.structs.replace(a_dead_letter(), error="half a pair: \ud800")
    assert read(letter.key, letter.value, letter.all_headers()).error == "half a pair: \\ud800"


def test_an_error_is_described_by_its_class_with_its_module_and_its_message() -> None:
    assert describe(msgspec.ValidationError("Expected `int`")) == ("msgspec.ValidationError", "Expected `int`")
    assert describe(KeyError("id")) == ("builtins.KeyError", "'id'")


def class_named(name: str, module: object = None, qualname: str | None = None) -> type[Exception]:
    """Return a class that code without a module defined, unless one is given."""
    scope: dict[str, Any] = {} if module is None else {"__module__": module}
    scope |= {} if qualname is None else {"__qualname__": qualname}
    found: Any = eval("make(name, (Exception,), scope)", {"make": type, "name": name, "scope": scope})  # noqa: S307 - ours
    return cast("type[Exception]", found)


@pytest.mark.parametrize(
    ("kind", "described"),
    [
        (class_named("Failed"), b"?.Failed"),
        (class_named(""), b"?.?"),
        (class_named("Failed", "", ""), b"?.?"),
        (class_named("Failed", 5), b"5.Failed"),
        (class_named("Failed", "\ud800", "\udfff"), b"\\ud800.\\udfff"),
        (class_named("Failed", "m", "n" * 10_000), b"m." + b"n" * (MAX_ERROR_CHARACTERS - 2) + "…".encode()),
    ],
)
def test_an_error_of_a_class_with_any_names_is_described_and_its_letter_can_be_written(
    kind: type[Exception], described: bytes
) -> None:
    error_type, error = describe(kind("\ud800"))
    letter = msgspec.structs.replace(a_dead_letter(), error_type=error_type, error=error)
    headers = dict(letter.all_headers())
    assert (headers["kafka_dlt-exception-fqcn"], headers["kafka_dlt-exception-message"]) == (described, b"\\ud800")


def test_of_an_error_that_quotes_a_whole_value_only_the_beginning_is_kept() -> None:
    assert describe(ValueError("x" * MAX_ERROR_CHARACTERS))[1] == "x" * MAX_ERROR_CHARACTERS
    assert describe(ValueError("x" * 1_000_000))[1] == "x" * MAX_ERROR_CHARACTERS + "…"


@given(DEAD_LETTERS, st.integers(1, 20))
def test_a_record_is_sent_back_as_it_was_however_often(letter: DeadLetter, rounds: int) -> None:
    own, _, _ = history(letter.headers)
    for _ in range(rounds):
        letter = msgspec.structs.replace(letter, headers=tuple(redrive_headers(letter)))
        assert tuple(history(letter.headers)[0]) == tuple(own)


@given(SOME_BYTES | st.binary(min_size=4, max_size=4), st.just(b"\x7f\xff\xff\xff") | st.binary(max_size=5), SOME_BYTES)
def test_whatever_headers_say_of_earlier_tries_the_record_can_be_dead_lettered_and_sent_back(
    other: bytes | None, tries: bytes, rounds: bytes | None
) -> None:
    for said in ((TRIES, tries), (ROUNDS, rounds)), ((TRIES, other), (ROUNDS, tries)):
        headers: tuple[Header, ...] = (("own", b"1"), *said)
        _, tries_before, _ = history(headers)
        letter = msgspec.structs.replace(a_dead_letter(), headers=headers, tries=tries_before + 1)
        assert read(letter.key, letter.value, letter.all_headers()) == letter
        assert history(redrive_headers(letter))[2] > 0


@given(SOME_BYTES, SOME_BYTES, HEADERS | st.lists(st.tuples(SPRINGS, SOME_BYTES)))
def test_whatever_headers_a_record_has_it_can_be_listed_and_sent_back(
    key: bytes | None, value: bytes | None, headers: Sequence[Header]
) -> None:
    letter = read(key, value, headers)
    assert (letter.key, letter.value) == (key, value)
    assert all(header in headers for header in letter.headers)
    assert history(redrive_headers(letter))[2] > 0


@given(DEAD_LETTERS)
def test_a_record_that_is_sent_back_names_the_group_and_topic_of_its_letter(letter: DeadLetter) -> None:
    named = letter.group and letter.topic
    expected = Target(letter.group or "", letter.topic or "") if named else None
    assert redriven_for(redrive_headers(letter)) == expected
    assert redriven_for([*redrive_headers(letter), ("traced-by", b"another")]) == expected
    assert redriven_for(redrive_headers(letter, for_all_groups=True)) is None


@pytest.mark.parametrize("group", ["another", None])
def test_the_group_that_a_record_is_sent_back_for_replaces_the_one_before(group: str | None) -> None:
    letter = msgspec.structs.replace(a_dead_letter(), headers=tuple(redrive_headers(a_dead_letter())), group=group)
    again = redrive_headers(letter)
    assert [name for name, _ in again].count(REDRIVEN_FOR) == (1 if group else 0)
    assert redriven_for(again) == (Target(group, "events") if group else None)
    assert tuple(history(again)[0]) == a_dead_letter().headers
    assert history(again)[2] == 2


def test_a_record_that_is_sent_back_names_its_first_place_however_often() -> None:
    letter = msgspec.structs.replace(a_dead_letter(), topic="events", partition=3, offset=42)
    once = redrive_headers(letter)
    assert once[-1] == (ORIGIN, b'{"topic":"events","partition":3,"offset":42}')
    again = redrive_headers(msgspec.structs.replace(letter, headers=tuple(once), partition=3, offset=99))
    assert again[-1] == once[-1]
    assert [name for name, _ in again].count(ORIGIN) == 1
    traced = [*again, ("traced-by", b"another")]
    assert first_place(traced, Place("events", 3, 120)) == Place("events", 3, 42)
    assert first_place(traced, Place("derived", 3, 120)) == Place("derived", 3, 120)
    assert tuple(history(again)[0]) == letter.headers
    for_all = redrive_headers(letter, for_all_groups=True)
    assert (first_place(for_all, Place("events", 3, 99)), tuple(history(for_all)[0])) == (
        Place("events", 3, 42),
        letter.headers,
    )


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b'{"topic":"events","partition":-1,"offset":0}',
        b'{"topic":"events"}',
        b"\xff",
        b"[" * 1_000,
        b'{"topic":"events","partition":1,"offset":0,"more":"' + b"x" * 2_000 + b'"}',
    ],
)
def test_a_first_place_that_is_none_is_the_own_one(content: bytes | None) -> None:
    own = Place("events", 3, 120)
    headers = [*redrive_headers(a_dead_letter())[:-1], (ORIGIN, content)]
    assert first_place(headers, own) == own
    assert first_place([(ORIGIN, b'{"topic":"events","partition":1,"offset":0}')], own) == own


def test_a_letter_that_does_not_name_its_place_gives_none() -> None:
    headers = redrive_headers(msgspec.structs.replace(a_dead_letter(), offset=None))
    assert ORIGIN not in dict(headers)
