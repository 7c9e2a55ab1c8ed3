"""View of a dead letter over HTTP: its record, where that came from, and why it could not be consumed."""

import msgspec

from apps.consumer.browsing.record_view import Content, Header, content_of, headers_of
from apps.consumer.redriving.letters import letter_of, owner_of
from apps.consumer.redriving.marks import Marks
from apps.consumer.redriving.redrive import Redriver
from contracts import dead_letter
from contracts.record import Place, Record

MAX_STACK_CHARACTERS = 20_000


class Origin(msgspec.Struct):
    """The record's original place; `timestamp` in milliseconds since 1970 UTC. Null: the letter does not name it."""

    topic: str | None
    partition: int | None
    offset: int | None
    timestamp: int | None


class FirstPlace(msgspec.Struct):
    """The record's place before it was first sent back: what identifies it, and what its handler gets as `origin`."""

    topic: str
    partition: int
    offset: int


class DeadLetter(msgspec.Struct):
    """A dead letter by its place, its original record, why it could not be consumed and how often it was tried.

    `rounds` counts how often it was sent back before. `held`: it was sent back too often, or is larger than its topic
    takes, so that it is sent back only when it is requested by itself. `group` could not consume it, and sends it back.
    `redrivable` is whether this consumer does: the letter is of its topic, of its group or of none, and neither sent
    back (`redriven`) nor `discarded`. `origin` is the record that was dead-lettered, `first_place` where it was before
    any redrive. `verdict` is `poison` when the handler failed for it, and `refused` when it was undecodable or
    rejected. Null is what a letter of another writer, or an earlier version, does not name.
    """

    partition: int
    offset: int
    timestamp: int
    key: Content | None
    value: Content | None
    headers: list[Header]
    origin: Origin
    first_place: FirstPlace | None
    group: str | None
    error_type: str | None
    error: str | None
    tries: int | None
    rounds: int
    held: bool
    redriven: bool
    redrivable: bool
    verdict: str | None
    stack: str | None
    discarded: bool


def view(record: Record, marks: Marks, redriver: Redriver) -> DeadLetter:
    """Return the view of the dead letter in a record."""
    letter = letter_of(record)
    headers, _, rounds = dead_letter.history(letter.headers)
    marked = marks.contains(owner_of(letter), record.partition, record.offset)
    discarded = marks.is_discarded(record.partition, record.offset)
    return DeadLetter(
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        key=content_of(letter.key),
        value=content_of(letter.value),
        headers=headers_of(headers),
        origin=Origin(letter.topic, letter.partition, letter.offset, letter.timestamp),
        first_place=_first_place_of(letter),
        group=letter.group,
        error_type=letter.error_type,
        error=letter.error,
        tries=letter.tries,
        rounds=rounds,
        held=redriver.letters.is_held(letter),
        redriven=marked and not discarded,
        redrivable=redriver.is_ours(letter) and not marked,
        verdict=letter.verdict,
        stack=letter.stack and letter.stack[:MAX_STACK_CHARACTERS],
        discarded=discarded,
    )


def _first_place_of(letter: dead_letter.DeadLetter) -> FirstPlace | None:
    if letter.topic is None or letter.partition is None or letter.offset is None:
        return None
    return FirstPlace(*dead_letter.first_place(letter.headers, Place(letter.topic, letter.partition, letter.offset)))
