"""A dead letter: a record that could not be consumed, byte for byte, and the reason.

Key, value and headers are those of the record. The reason and its origin follow in headers, named and encoded as Spring
Kafka's `DeadLetterPublishingRecoverer` does it (integers big-endian, text UTF-8), so that its tools read them too. If
the record was dead-lettered before, its older set stays among its own headers.

Dead letters of other writers, like Spring Kafka, are read too: by the names of the headers, in any order. What such a
letter does not name is None.
"""

from collections.abc import Sequence
from struct import Struct as Packing
from typing import Any, NamedTuple

import msgspec

Header = tuple[str, bytes | None]
Headers = Sequence[Header]

TOPIC = "kafka_dlt-original-topic"
PARTITION = "kafka_dlt-original-partition"
OFFSET = "kafka_dlt-original-offset"
TIMESTAMP = "kafka_dlt-original-timestamp"
GROUP = "kafka_dlt-original-consumer-group"
ERROR_TYPE = "kafka_dlt-exception-fqcn"
ERROR = "kafka_dlt-exception-message"
TRIES = "kafka_deliveryAttempt"

ROUNDS = "dead-letter-rounds"
"""Says, behind the record's own headers, how often a record was sent back; with `TRIES` so far before it."""

REDRIVEN_FOR = "dead-letter-redriven-for"
"""Says, directly behind `ROUNDS`, for which group a record was sent back: a `Target` as JSON."""

OMITTED_BYTES = "dead-letter-omitted-bytes"
"""The only header of its own that a too large record keeps: its size in bytes, in decimal digits."""

INT32 = Packing(">i")
INT64 = Packing(">q")


class Said(NamedTuple):
    """A header that describes a dead letter: its name, its meaning, and how its number is packed.

    Without a packing it is text, in UTF-8. A number below `least` is ignored. `aliases` are the names of the same
    header in letters of other writers, in the order in which they replace a missing `header`.
    """

    header: str
    field: str
    meaning: str
    packing: Packing | None = None
    least: int | None = None
    aliases: tuple[str, ...] = ()

    def pack(self, value: str | int) -> Header:
        """Return the header."""
        packed = str(value).encode("utf-8", "backslashreplace") if self.packing is None else self.packing.pack(value)
        return self.header, packed

    def unpack(self, content: bytes | None) -> str | int | None:
        """Return the value of the header; None when it is null, or not a number of 4 or 8 bytes.

        Bytes of a text that are not UTF-8 are escaped.
        """
        if content is None:
            return None
        if self.packing is None:
            return content.decode("utf-8", "backslashreplace")
        if len(content) not in {INT32.size, INT64.size}:
            return None
        number = int.from_bytes(content, "big", signed=True)
        return number if self.least is None or number >= self.least else None


SAID_TRIES = Said(
    TRIES, "tries", "How often it was tried to consume it, from 1.", INT32, least=0, aliases=("retry_topic-attempts",)
)
SAID = (
    Said(TOPIC, "topic", "The topic that the record stood in.", aliases=("kafka_original-topic",)),
    Said(PARTITION, "partition", "The partition that it stood in.", INT32, 0, ("kafka_original-partition",)),
    Said(OFFSET, "offset", "Its offset there.", INT64, 0, ("kafka_original-offset",)),
    Said(
        TIMESTAMP,
        "timestamp",
        "Its own timestamp, in milliseconds since 1970 UTC.",
        INT64,
        aliases=("kafka_original-timestamp",),
    ),
    Said(GROUP, "group", "The group that could not consume it.", aliases=("kafka_original-consumer-group",)),
    Said(
        ERROR_TYPE,
        "error_type",
        "The Python class of the error, with its module.",
        aliases=(
            "kafka_exception-fqcn",
            "kafka_dlt-key-exception-fqcn",
            "kafka_key-exception-fqcn",
            "kafka_dlt-exception-cause-fqcn",
            "kafka_exception-cause-fqcn",
        ),
    ),
    Said(
        ERROR,
        "error",
        "The error's message.",
        aliases=("kafka_exception-message", "kafka_dlt-key-exception-message", "kafka_key-exception-message"),
    ),
    SAID_TRIES,
)
"""The headers behind the record's own, in their order, each with the field of `DeadLetter` that it holds."""
NAMES = tuple(said.header for said in SAID)

APPENDED = frozenset(
    {
        *NAMES,
        "kafka_dlt-original-timestamp-type",
        "kafka_dlt-exception-cause-fqcn",
        "kafka_dlt-exception-stacktrace",
        "kafka_dlt-key-exception-fqcn",
        "kafka_dlt-key-exception-message",
        "kafka_dlt-key-exception-stacktrace",
    }
)
"""Headers that a writer of dead letters appends each time: only the last of each is of this letter."""
OF_RETRIES = frozenset(
    {
        *(f"kafka_original-{name}" for name in ("topic", "partition", "offset", "timestamp", "timestamp-type")),
        "kafka_original-consumer-group",
        *(f"kafka_exception-{name}" for name in ("fqcn", "cause-fqcn", "message", "stacktrace")),
        *(f"kafka_key-exception-{name}" for name in ("fqcn", "message", "stacktrace")),
        *(f"retry_topic-{name}" for name in ("attempts", "original-timestamp", "backoff-timestamp")),
        "springDeserializerExceptionKey",
        "springDeserializerExceptionValue",
    }
)
"""Headers that Spring's retry topics and deserializers add on the way; none is the record's own."""

SAID_OF_SENT_BACK = (
    SAID_TRIES,
    Said(ROUNDS, "rounds", "How often it was sent back.", INT32),
)
"""The headers behind the own ones of a record that was sent back: its tries so far, and how often it was sent back."""

SAID_TARGET = Said(
    REDRIVEN_FOR, "target", 'For which group it was sent back, and to which topic: `{"group", "topic"}` in JSON.'
)
"""The header behind those, where the dead letter named its group."""

MOST_COUNTED = 2**30
"""Tries and rounds are counted no further: headers may say any number, and one more must fit into them too."""
LONGEST_TARGET_BYTES = 64 * 1024
"""Bytes of a header that names a group which are read: Kafka takes no longer names of groups."""
LONGEST_ERROR = 1_000
"""Characters of an error's message that are kept: it may quote the whole value."""


class Target(msgspec.Struct, frozen=True):
    """The group that a record was sent back for, and the topic.

    Applications copy headers to what they derive of a record: on another topic they say nothing.
    """

    group: str
    topic: str


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that could not be consumed, its origin and the reason; `SAID` describes each field.

    A field is None when a letter of another writer does not name it.
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

    def all_headers(self) -> list[Header]:
        """Return the record's own headers with those that say what became of it behind them."""
        told = ((said, getattr(self, said.field)) for said in SAID)
        return [*self.headers, *(said.pack(value) for said, value in told if value is not None)]


def is_omitted(letter: DeadLetter) -> bool:
    """Return whether a dead letter lacks the value of its record, which was too large to be read."""
    return letter.value is None and [name for name, _ in letter.headers] == [OMITTED_BYTES]


def sent_back(letter: DeadLetter, *, for_all_groups: bool = False) -> list[Header]:
    """Return the headers of the record that is sent back: its own, its tries so far and how often it was sent back.

    Behind them stands the letter's group, if it names one, unless the record is `for_all_groups`.
    """
    own, tries_before, rounds = history(letter.headers)
    tries = tries_before + 1 if letter.tries is None else letter.tries
    now = {"tries": min(tries, MOST_COUNTED), "rounds": min(rounds + 1, MOST_COUNTED)}
    headers = [*own, *(said.pack(now[said.field]) for said in SAID_OF_SENT_BACK)]
    if letter.group and letter.topic and not for_all_groups:
        headers.append((REDRIVEN_FOR, msgspec.json.encode(Target(letter.group, letter.topic))))
    return headers


def history(headers: Headers) -> tuple[Headers, int, int]:
    """Return a record's own headers, its earlier tries, and how often it was sent back from the dead letters.

    What the last redrive wrote counts, even if others were added after it.
    """
    place = _place_of_redrive(headers)
    if place is None:
        return headers, 0, 0
    tries, rounds, *following = headers[place : place + 3]
    length = 3 if following and following[0][0] == REDRIVEN_FOR else 2  # earlier versions named no group
    return [*headers[:place], *headers[place + length :]], _counted(tries[1]), _counted(rounds[1])


def redriven_for(headers: Headers) -> Target | None:
    """Return the group that a record was sent back for, None when it was not or its last redrive named none."""
    place = _place_of_redrive(headers)
    name, content = ("", None) if place is None else next(iter(headers[place + 2 : place + 3]), ("", None))
    if name != REDRIVEN_FOR or content is None or len(content) > LONGEST_TARGET_BYTES:
        return None
    try:
        target = msgspec.json.decode(content, type=Target)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return target if target.group else None


def _place_of_redrive(headers: Headers) -> int | None:
    """Return where the headers begin that the last redrive wrote."""
    for place in range(len(headers) - 2, -1, -1):
        (name, tries), (following, rounds) = headers[place : place + 2]
        if (name, following) == (TRIES, ROUNDS) and _is_int32(tries) and _is_int32(rounds):
            return place
    return None


def _is_int32(content: bytes | None) -> bool:
    return content is not None and len(content) == INT32.size


def _counted(content: bytes | None) -> int:
    return min(max(int.from_bytes(content or b"", "big", signed=True), 0), MOST_COUNTED)


def describe(error: BaseException) -> tuple[str, str]:
    """Return the `error_type` and `error` of a dead letter for what was raised."""
    kind = type(error)
    return f"{kind.__module__}.{kind.__qualname__}", _shortened(str(error))


def _shortened(message: str) -> str:
    return message if len(message) <= LONGEST_ERROR + 1 else message[:LONGEST_ERROR] + "…"


def read(key: bytes | None, value: bytes | None, headers: Headers) -> DeadLetter:
    """Return the dead letter in a record of the dead-letter topic, from any writer.

    A letter whose last headers are ours, in their order, is read exactly as it was written. In any other letter the
    last header of each name counts, and all headers that a writer of dead letters adds are removed from the record's
    own.
    """
    ours = tuple(name for name, _ in headers[-len(NAMES) :]) == NAMES
    own, said = (headers[: -len(NAMES)], dict(headers[-len(NAMES) :])) if ours else _by_name(headers)
    told: dict[str, Any] = {one.field: _told(one, said) for one in SAID}
    if not ours:
        _, tries_before, _ = history(own)
        told["tries"] = None if told["tries"] is None else min(told["tries"] + tries_before, MOST_COUNTED)
        told |= {field: _shortened(told[field]) for field in ("error_type", "error") if told[field] is not None}
    return DeadLetter(key=key, value=value, headers=tuple(own), **told)


def _told(said: Said, headers: dict[str, bytes | None]) -> str | int | None:
    """Return the first meaningful value among a field's headers."""
    answers = (said.unpack(headers.get(name)) for name in (said.header, *said.aliases))
    return next((answer for answer in answers if answer is not None), None)


def _by_name(headers: Headers) -> tuple[Headers, dict[str, bytes | None]]:
    """Return the record's own headers, and the headers of the dead letter."""
    own: list[Header] = []
    said: dict[str, bytes | None] = {}
    following = ""
    for name, content in reversed(headers):
        of_a_redrive = name == TRIES and following == ROUNDS  # older than this letter: see `history`
        if name in OF_RETRIES or (name in APPENDED and name not in said and not of_a_redrive):
            said.setdefault(name, content)
        else:
            own.append((name, content))
        following = name
    return own[::-1], said
