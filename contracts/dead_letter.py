"""The format of a dead letter: a record that could not be consumed, byte for byte, and the reason.

Key, value and headers are those of the record. Further headers hold the reason and the record's origin. Their names and
encoding (integers big-endian, text UTF-8) are those of Spring Kafka's `DeadLetterPublishingRecoverer`, so that its
tools read them too. If the record was dead-lettered before, the earlier set stays among its own headers.

Dead letters of other writers, like Spring Kafka, are read too: by the names of the headers, in any order. A field
without a header is None.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from struct import Struct as Packing
from typing import Annotated, Any, NamedTuple

import msgspec

from contracts.record import Place

Header = tuple[str, bytes | None]
Headers = Sequence[Header]

TRIES = "kafka_deliveryAttempt"
ROUNDS = "dead-letter-rounds"
"""How often a record was sent back. It follows the record's own headers and `TRIES`, which counts its tries so far."""

POISON, REFUSED = "poison", "refused"
"""Verdicts on a record: the handler failed for it, or it is undecodable or rejected.

Their header has a prefix of Spring's, so that earlier versions do not take it for one of the record's own.
"""

REDRIVEN_FOR = "dead-letter-redriven-for"
"""The group that a record was sent back for, directly after `ROUNDS`: a `Target` as JSON."""

ORIGIN = "dead-letter-origin"
"""The place of a redriven record before it was first sent back, behind all of these: a `Place` as a JSON object."""

OMITTED_BYTES = "dead-letter-omitted-bytes"
"""Replaces the own headers of a record that is too large: its size in bytes, as decimal digits."""

INT32, INT64 = Packing(">i"), Packing(">q")


class HeaderField(NamedTuple):
    """A header of a dead letter: its name, the field of `DeadLetter` it holds, its meaning, and how it is packed.

    Without a packing it is text, in UTF-8. A number below `minimum` is ignored. `aliases` are the names that other
    writers give the header; they are tried in this order when `header` is missing.
    """

    header: str
    field: str
    meaning: str
    packing: Packing | None = None
    aliases: tuple[str, ...] = ()
    minimum: int = 0

    def pack(self, value: str | int) -> Header:
        """Return the header for a value of the field."""
        packed = str(value).encode("utf-8", "backslashreplace") if self.packing is None else self.packing.pack(value)
        return self.header, packed

    def unpack(self, content: bytes | None) -> str | int | None:
        """Return the value of the header; None for a null, or a number that does not have 4 or 8 bytes.

        Invalid UTF-8 in a text is escaped.
        """
        if content is None:
            return None
        if self.packing is None:
            return content.decode("utf-8", "backslashreplace")
        number = int.from_bytes(content, "big", signed=True)
        return number if len(content) in {INT32.size, INT64.size} and number >= self.minimum else None

    def find(self, headers: Mapping[str, bytes | None]) -> str | int | None:
        """Return the first usable value among the header and its aliases, or None."""
        values = (self.unpack(headers.get(name)) for name in (self.header, *self.aliases))
        return next((value for value in values if value is not None), None)


DLT, RETRY = "kafka_dlt-", "kafka_"
"""How the names of Spring's headers begin: on dead letters, and on retry topics."""


def _field(field: str, meaning: str, *names: str, packing: Packing | None = None, minimum: int = 0) -> HeaderField:
    """Return a field by Spring's names for it, without their prefix, the preferred name first."""
    header, *aliases = [prefix + name for name in names for prefix in (DLT, RETRY)]
    return HeaderField(header, field, meaning, packing, tuple(aliases), minimum)


TRIES_FIELD = HeaderField(
    TRIES, "tries", "How many attempts were made to consume it, at least 1.", INT32, ("retry_topic-attempts",)
)
STACK_FIELD = _field(
    "stack", "The stack of the handler, if it raised.", "exception-stacktrace", "key-exception-stacktrace"
)
WRITTEN_FIELD = HeaderField(
    f"{DLT}written",
    "written",
    "Only on a dead letter that a purge has written again: when it was first written, in milliseconds since 1970 UTC.",
    INT64,
)
LETTER_FIELDS = (
    _field("topic", "The original topic of the record.", "original-topic"),
    _field("partition", "Its original partition.", "original-partition", packing=INT32),
    _field("offset", "Its offset there.", "original-offset", packing=INT64),
    _field("timestamp", "In milliseconds since 1970 UTC.", "original-timestamp", packing=INT64, minimum=-1),
    _field("group", "The group that could not consume it.", "original-consumer-group"),
    _field(
        "error_type",
        "The Python class of the error, with its module.",
        "exception-fqcn",
        "key-exception-fqcn",
        "exception-cause-fqcn",
    ),
    _field("error", "The error's message.", "exception-message", "key-exception-message"),
    TRIES_FIELD,
    HeaderField(
        f"{DLT}verdict",
        "verdict",
        "`poison`: the handler failed for it. `refused`: undecodable, or the handler rejected it.",
    ),
    STACK_FIELD,
    WRITTEN_FIELD,
)
"""The headers of a dead letter, in the order in which they follow the record's own."""
NAMES = tuple(one.header for one in LETTER_FIELDS[:-1])
NAMES_ALWAYS, NAMES_BEFORE = NAMES[:-1], NAMES[:-2]
"""The headers that each dead letter has, and those of earlier versions, which have no verdict."""

APPENDED = (DLT, TRIES)
"""How the names of headers begin that every dead-lettering appends: the last of each name belongs to this letter."""
OF_RETRIES = (
    "kafka_original-",
    "kafka_exception-",
    "kafka_key-exception-",
    "retry_topic-",
    "springDeserializerException",
)
"""How the names of headers begin that Spring's retry topics and deserializers add; none is the record's own."""

REDRIVE_FIELDS = (TRIES_FIELD, HeaderField(ROUNDS, "rounds", "How often it was sent back.", INT32))
"""The headers that follow the own ones of a redriven record: its tries so far, and how often it was sent back."""
TARGET_FIELD = HeaderField(
    REDRIVEN_FOR, "target", 'The group that it was sent back for, and the topic: `{"group", "topic"}` in JSON.'
)
"""The header that follows `REDRIVE_FIELDS`, if the dead letter named its group."""
ORIGIN_FIELD = HeaderField(
    ORIGIN, "origin", 'Its place before it was first sent back: `{"topic", "partition", "offset"}` in JSON.'
)
"""The last header of a redriven record, if the dead letter named its place."""

MAX_COUNT = 2**30
"""Upper bound of tries and rounds: a header may hold any number, and one more must fit into 32 bits."""
MAX_TARGET_BYTES = 64 * 1024
"""Most bytes of a header that names a group: Kafka accepts no longer group names."""
MAX_ORIGIN_BYTES = 1024
"""Most bytes of a header that names a place: Kafka accepts no longer topic names."""
MAX_ERROR_CHARACTERS = 1_000
"""Characters of an error message that are kept: it may quote the whole value."""


class Target(msgspec.Struct, frozen=True):
    """The group that a record was sent back for, and the topic.

    It counts only on this topic, because applications copy headers to derived records.
    """

    group: str
    topic: str


class _Origin(msgspec.Struct, frozen=True):
    topic: str
    partition: Annotated[int, msgspec.Meta(ge=0)]
    offset: Annotated[int, msgspec.Meta(ge=0)]


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that could not be consumed, its origin and the reason; `LETTER_FIELDS` describes each field.

    A field is None when another writer left it out.
    """

    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]
    topic: str | None
    partition: int | None
    offset: int | None
    timestamp: int | None
    group: str | None
    error_type: str | None
    error: str | None
    tries: int | None
    verdict: str | None = None
    stack: str | None = None
    written: int | None = None

    def all_headers(self) -> list[Header]:
        """Return the record's own headers, followed by those of the dead letter."""
        values = ((one, getattr(self, one.field)) for one in LETTER_FIELDS)
        return [*self.headers, *(one.pack(value) for one, value in values if value is not None)]


def is_omitted(letter: DeadLetter) -> bool:
    """Return whether a dead letter lacks the value of its record, which was too large to be read."""
    return letter.value is None and [name for name, _ in letter.headers] == [OMITTED_BYTES]


def redrive_headers(letter: DeadLetter, *, for_all_groups: bool = False) -> list[Header]:
    """Return the headers to send a record back with: its own, its tries so far and how often it was sent back.

    The letter's group follows, if it names one, unless the record is `for_all_groups`. The first place of the record
    follows, if it is known.
    """
    own, tries_before, rounds = history(letter.headers)
    tries = tries_before + 1 if letter.tries is None else letter.tries
    now = {"tries": min(tries, MAX_COUNT), "rounds": min(rounds + 1, MAX_COUNT)}
    headers = [*own, *(one.pack(now[one.field]) for one in REDRIVE_FIELDS)]
    if letter.group and letter.topic and not for_all_groups:
        headers.append((REDRIVEN_FOR, msgspec.json.encode(Target(letter.group, letter.topic))))
    if letter.topic is not None and letter.partition is not None and letter.offset is not None:
        place = first_place(letter.headers, Place(letter.topic, letter.partition, letter.offset))
        headers.append((ORIGIN, msgspec.json.encode(_Origin(*place))))
    return headers


def history(headers: Headers) -> tuple[Headers, int, int]:
    """Return a record's own headers, its earlier tries, and how often it was sent back from the dead letters.

    The headers that the last redrive wrote count, even if others were added after them.
    """
    place = _place_of_redrive(headers)
    if place is None:
        return headers, 0, 0
    (_, tries), (_, rounds) = headers[place : place + 2]
    return [*headers[:place], *headers[_end_of_redrive(headers, place) :]], _counted(tries), _counted(rounds)


def redriven_for(headers: Headers) -> Target | None:
    """Return the group that a record was sent back for; None if it was not, or its last redrive named no group."""
    place = _place_of_redrive(headers)
    name, content = ("", None) if place is None else next(iter(headers[place + 2 : place + 3]), ("", None))
    if name != REDRIVEN_FOR or content is None or len(content) > MAX_TARGET_BYTES:
        return None
    try:
        target = msgspec.json.decode(content, type=Target)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return target if target.group else None


def first_place(headers: Headers, place: Place) -> Place:
    """Return the place of a record before it was first sent back; `place` is its present one.

    A place on another topic is ignored, because applications copy headers to derived records.
    """
    begin = _place_of_redrive(headers)
    if begin is not None:
        name, content = headers[_end_of_redrive(headers, begin) - 1]
        if name == ORIGIN and content is not None and len(content) <= MAX_ORIGIN_BYTES:
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                origin = msgspec.json.decode(content, type=_Origin)
                if origin.topic == place.topic:
                    return Place(origin.topic, origin.partition, origin.offset)
    return place


def _end_of_redrive(headers: Headers, begin: int) -> int:
    """Return the index after the headers that a redrive wrote; earlier versions named neither a group nor a place."""
    end = begin + 2
    for name in (REDRIVEN_FOR, ORIGIN):
        if end < len(headers) and headers[end][0] == name:
            end += 1
    return end


def _place_of_redrive(headers: Headers) -> int | None:
    """Return the index of the first header that the last redrive wrote, or None."""
    for place in range(len(headers) - 2, -1, -1):
        (name, tries), (following, rounds) = headers[place : place + 2]
        if (name, following) == (TRIES, ROUNDS) and len(tries or b"") == len(rounds or b"") == INT32.size:
            return place
    return None


def _counted(content: bytes | None) -> int:
    return min(max(int.from_bytes(content or b"", "big", signed=True), 0), MAX_COUNT)


def describe(error: BaseException) -> tuple[str, str]:
    """Return the `error_type` and `error` of a dead letter for an exception, whose class may lack a name."""
    module, name = (getattr(type(error), of, None) or "?" for of in ("__module__", "__qualname__"))
    return _shortened(f"{module}.{name}"), _shortened(str(error))


def _shortened(message: str) -> str:
    return message if len(message) <= MAX_ERROR_CHARACTERS + 1 else message[:MAX_ERROR_CHARACTERS] + "…"


def read(key: bytes | None, value: bytes | None, headers: Headers) -> DeadLetter:
    """Return the dead letter in a record of the dead-letter topic, from any writer.

    A letter whose last headers are ours, in their order, is read exactly as it was written. In any other letter the
    last header of each name counts, and all headers that dead-lettering adds are removed from the record's own.
    """
    first_headers = headers[:-1] if _is_written_again(headers) else headers
    last = tuple(name for name, _ in first_headers[-len(NAMES) :])
    ours = next((len(names) for names in (NAMES, NAMES_ALWAYS, NAMES_BEFORE) if last[-len(names) :] == names), 0)
    own, described = (first_headers[:-ours], dict(headers[len(first_headers) - ours :])) if ours else _by_name(headers)
    fields: dict[str, Any] = {one.field: one.find(described) for one in LETTER_FIELDS}
    if not ours:
        _, tries_before, _ = history(own)
        fields["tries"] = None if fields["tries"] is None else min(fields["tries"] + tries_before, MAX_COUNT)
        fields |= {name: _shortened(fields[name]) for name in ("error_type", "error") if fields[name] is not None}
    return DeadLetter(key=key, value=value, headers=tuple(own), **fields)


def first_written(headers: Headers, timestamp: int) -> int:
    """Return when a dead letter was first written (ms since 1970 UTC); `timestamp` is that of its present record."""
    written = WRITTEN_FIELD.unpack(headers[-1][1]) if _is_written_again(headers) else None
    return written if isinstance(written, int) else timestamp


def written_again(headers: Headers, timestamp: int) -> list[Header]:
    """Return the headers to write a dead letter again with: they keep when it was first written."""
    return [*headers] if _is_written_again(headers) else [*headers, WRITTEN_FIELD.pack(timestamp)]


def _is_written_again(headers: Headers) -> bool:
    return bool(headers) and headers[-1][0] == WRITTEN_FIELD.header


def _by_name(headers: Headers) -> tuple[Headers, dict[str, bytes | None]]:
    """Return the record's own headers, and the headers of the dead letter."""
    own: list[Header] = []
    described: dict[str, bytes | None] = {}
    following = ""
    for name, content in reversed(headers):
        of_a_redrive = name == TRIES and following == ROUNDS  # of an earlier redrive: see `history`
        appended = name.startswith(APPENDED) and name not in described and not of_a_redrive
        if appended or name.startswith(OF_RETRIES):
            described.setdefault(name, content)
        else:
            own.append((name, content))
        following = name
    return own[::-1], described
