import struct
from dataclasses import replace as dataclass_replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import Stored

from contracts.dead_letter import (
    LONGEST_ERROR,
    NAMES,
    ROUNDS,
    TRIES,
    DeadLetter,
    Header,
    describe,
    history,
    read,
    sent_back,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SOME_BYTES = st.none() | st.binary()
HEADERS = st.lists(st.tuples(TEXT | st.sampled_from(NAMES), SOME_BYTES), max_size=20).map(tuple)
INT32 = st.integers(0, 2**31 - 1)
INT64 = st.integers(-1, 2**63 - 1)
DEAD_LETTERS = st.builds(
    DeadLetter,
    key=SOME_BYTES,
    value=SOME_BYTES,
    headers=HEADERS,
    topic=TEXT,
    partition=INT32,
    offset=INT64,
    timestamp=INT64,
    group=TEXT,
    error_type=TEXT,
    error=TEXT,
    tries=INT32,
)


def a_dead_letter() -> DeadLetter:
    return DeadLetter(
        key=b"key",
        value=b"not a person",
        headers=(("trace", b"\x00\xff"), ("trace", None)),
        topic="people",
        partition=3,
        offset=2**40 + 5,
        timestamp=1_700_000_000_123,
        group="people-consumer",
        error_type="msgspec.ValidationError",
        error="Expected `int`",
        tries=1,
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
    assert [name for name, _ in letter.all_headers()[4:]] == list(NAMES)


def test_what_became_of_the_record_is_encoded_as_spring_kafka_does() -> None:
    headers = dict(a_dead_letter().all_headers())
    assert headers["kafka_dlt-original-topic"] == b"people"
    assert headers["kafka_dlt-original-partition"] == b"\x00\x00\x00\x03"
    assert headers["kafka_dlt-original-offset"] == b"\x00\x00\x01\x00\x00\x00\x00\x05"
    assert headers["kafka_dlt-original-timestamp"] == (1_700_000_000_123).to_bytes(8, "big")
    assert headers["kafka_dlt-original-consumer-group"] == b"people-consumer"
    assert headers["kafka_dlt-exception-fqcn"] == b"msgspec.ValidationError"
    assert headers["kafka_dlt-exception-message"] == b"Expected `int`"
    assert headers["kafka_deliveryAttempt"] == struct.pack(">i", 1)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("trace", b"1")],
        a_dead_letter().all_headers()[:-1],
        a_dead_letter().all_headers()[3:],
        [*a_dead_letter().all_headers(), ("trace", b"1")],
        a_dead_letter().all_headers()[::-1],
    ],
    ids=["none", "others", "one is missing", "some are missing", "not at the end", "another order"],
)
def test_a_record_without_the_headers_of_a_dead_letter_is_refused(headers: list[Header]) -> None:
    with pytest.raises(ValueError, match="dead letter"):
        read(b"key", b"value", headers)


@pytest.mark.parametrize("content", [None, b"", b"3", b"\x00" * 9], ids=["null", "empty", "as text", "too long"])
@pytest.mark.parametrize("name", ["partition", "offset", "timestamp"])
def test_a_dead_letter_of_another_make_is_refused_when_its_numbers_are_none(name: str, content: bytes | None) -> None:
    headers = with_content(a_dead_letter().all_headers(), f"kafka_dlt-original-{name}", content)
    with pytest.raises(ValueError):  # noqa: PT011 - which sentence it says does not matter
        read(b"key", b"value", headers)


def test_an_error_that_cannot_be_encoded_is_written_all_the_same() -> None:
    letter = msgspec.structs.replace(a_dead_letter(), error="half a pair: \ud800")
    assert read(letter.key, letter.value, letter.all_headers()).error == "half a pair: \\ud800"


def test_an_error_is_described_by_its_class_with_its_module_and_its_message() -> None:
    assert describe(msgspec.ValidationError("Expected `int`")) == ("msgspec.ValidationError", "Expected `int`")
    assert describe(KeyError("id")) == ("builtins.KeyError", "'id'")


def test_of_an_error_that_quotes_a_whole_value_only_the_beginning_is_kept() -> None:
    assert describe(ValueError("x" * LONGEST_ERROR))[1] == "x" * LONGEST_ERROR
    assert describe(ValueError("x" * 1_000_000))[1] == "x" * LONGEST_ERROR + "…"


@given(DEAD_LETTERS, st.integers(1, 20))
def test_a_record_is_sent_back_as_it_was_however_often(letter: DeadLetter, rounds: int) -> None:
    own, _, _ = history(letter.headers)
    for _ in range(rounds):
        letter = msgspec.structs.replace(letter, headers=tuple(sent_back(letter)))
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
        assert history(sent_back(letter))[2] > 0


@given(SOME_BYTES, SOME_BYTES, HEADERS)
def test_a_record_is_a_dead_letter_or_refused_and_nothing_else(
    key: bytes | None, value: bytes | None, headers: tuple[Header, ...]
) -> None:
    try:
        letter = read(key, value, headers)
    except ValueError:
        return
    assert letter.all_headers() == list(headers)
