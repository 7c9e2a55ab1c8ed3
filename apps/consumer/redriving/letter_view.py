"""View of a dead letter over HTTP: its record, where that came from, and why it could not be consumed."""

import re

import msgspec

from apps.consumer.browsing.record_view import Content, Header, View
from apps.consumer.consuming.decode import sort_out
from apps.consumer.redriving.letters import letter_of, owner_of
from apps.consumer.redriving.marks import Marks
from apps.consumer.redriving.redrive import Redriver
from contracts import dead_letter
from contracts.record import Place, Record
from contracts.sensitive import MASK

MAX_STACK_CHARACTERS = 20_000
FRAMES = re.compile(r"Traceback \(most recent call last\):\n(?:  .*\n)*")
"""The calls of a stack before the first message: a message quotes values, and may have lines that look like calls."""
FRAME = re.compile(r"^(?:Traceback .+|  File \"[^\"\n]+\", line \d+, in [\w.<>]+)$", re.MULTILINE)
"""A line of them that is no code."""


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
    rejected. Null is what a letter of another writer, or an earlier version, does not name. `masked`: the caller may
    not see what is sensitive.
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
    masked: bool | msgspec.UnsetType = msgspec.UNSET


def show_letter(view: View, record: Record, marks: Marks, redriver: Redriver) -> DeadLetter:
    """Return how the dead letter in a record is shown."""
    letter = letter_of(record)
    headers, _, rounds = dead_letter.history(letter.headers)
    marked = marks.contains(owner_of(letter), record.partition, record.offset)
    discarded = marks.is_discarded(record.partition, record.offset)
    return DeadLetter(
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        key=view.key(letter.key),
        value=_value_of(view, record),
        headers=view.headers(headers),
        origin=Origin(letter.topic, letter.partition, letter.offset, letter.timestamp),
        first_place=_first_place_of(letter),
        group=letter.group,
        error_type=letter.error_type,
        error=MASK if view.masking and letter.error else letter.error,
        tries=letter.tries,
        rounds=rounds,
        held=redriver.letters.is_held(letter),
        redriven=marked and not discarded,
        redrivable=redriver.is_ours(letter) and not marked,
        verdict=letter.verdict,
        stack=letter.stack and _stack_of(view, letter.stack)[:MAX_STACK_CHARACTERS],
        discarded=discarded,
        masked=view.masked,
    )


def _value_of(view: View, record: Record) -> Content | None:
    """Return a value as the caller sees it; the bytes of one that cannot be decoded are masked as a whole."""
    _, values, _ = sort_out(view.decode, [record]) if view.masking and record.value is not None else ((), (), ())
    return Content(msgspec.json.encode(view.value(values[0])).decode()) if values else view.stored(record.value)


def _stack_of(view: View, stack: str) -> str:
    if not view.masking:
        return stack
    frames = FRAMES.match(stack)
    return "\n".join(FRAME.findall(frames[0])) if frames else MASK


def _first_place_of(letter: dead_letter.DeadLetter) -> FirstPlace | None:
    if letter.topic is None or letter.partition is None or letter.offset is None:
        return None
    return FirstPlace(*dead_letter.first_place(letter.headers, Place(letter.topic, letter.partition, letter.offset)))
