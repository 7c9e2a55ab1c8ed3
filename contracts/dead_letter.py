"""A dead letter: a record that could not be consumed, byte for byte, and what became of it.

Key, value and headers are those of the record. What became of it stands in headers behind the record's own, named and
encoded as Spring Kafka's `DeadLetterPublishingRecoverer` does it (integers big-endian, text UTF-8), so that its tools
read them too. Where the record came through the dead letters before, its older set stays among its own headers.
"""

from collections.abc import Sequence
from contextlib import suppress
from struct import Struct as Packing
from struct import error as StructError  # noqa: N812 - it is an exception
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

OMITTED_BYTES = "dead-letter-omitted-bytes"
"""The only own header of a record that was too large to be read: how many bytes it has, in decimal digits."""

INT32 = Packing(">i")
INT64 = Packing(">q")


class Said(NamedTuple):
    """A header that says what became of a record: its name, what it says, and how its number is packed.

    Without a packing it is text, in UTF-8.
    """

    header: str
    field: str
    meaning: str
    packing: Packing | None = None

    def pack(self, value: str | int) -> Header:
        """Return the header."""
        packed = str(value).encode("utf-8", "backslashreplace") if self.packing is None else self.packing.pack(value)
        return self.header, packed

    def unpack(self, content: bytes | None) -> str | int:
        """Return what the header says. Raises `ValueError` (`struct.error` for a number) when it is not that."""
        if self.packing is None:
            return (content or b"").decode()
        return int(self.packing.unpack(content or b"")[0])


SAID_TRIES = Said(TRIES, "tries", "How often it was tried to consume it, from 1.", INT32)
SAID = (
    Said(TOPIC, "topic", "The topic that the record stood in."),
    Said(PARTITION, "partition", "The partition that it stood in.", INT32),
    Said(OFFSET, "offset", "Its offset there.", INT64),
    Said(TIMESTAMP, "timestamp", "Its own timestamp, in milliseconds since 1970 UTC.", INT64),
    Said(GROUP, "group", "The group that could not consume it."),
    Said(ERROR_TYPE, "error_type", "The Python class of the error, with its module."),
    Said(ERROR, "error", "The error's message."),
    SAID_TRIES,
)
"""The headers behind the record's own, in their order, each with the field of `DeadLetter` that it holds."""
NAMES = tuple(said.header for said in SAID)

SAID_OF_SENT_BACK = (
    SAID_TRIES,
    Said(ROUNDS, "rounds", "How often it was sent back.", INT32),
)
"""The headers behind the own ones of a record that was sent back: its tries so far, and how often it was sent back."""

MOST_COUNTED = 2**30
"""Tries and rounds are counted no further: headers may say any number, and one more must fit into them too."""
LONGEST_ERROR = 1_000
"""Characters of an error's message that are kept: it may quote the whole value."""


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that could not be consumed, where it came from and why; `SAID` tells what each of its fields is."""

    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]
    topic: str
    partition: int
    offset: int
    timestamp: int
    group: str
    error_type: str
    error: str
    tries: int

    def all_headers(self) -> list[Header]:
        """Return the record's own headers with those that say what became of it behind them."""
        return [*self.headers, *(said.pack(getattr(self, said.field)) for said in SAID)]


def is_omitted(letter: DeadLetter) -> bool:
    """Tell whether a dead letter lacks the value of its record, which was too large to be read."""
    return letter.value is None and [name for name, _ in letter.headers] == [OMITTED_BYTES]


def sent_back(letter: DeadLetter) -> list[Header]:
    """Return the headers of the record that is sent back: its own, its tries so far and how often it was sent back."""
    own, _, rounds = history(letter.headers)
    now = {"tries": letter.tries, "rounds": rounds + 1}
    return [*own, *(said.pack(now[said.field]) for said in SAID_OF_SENT_BACK)]


def history(headers: Headers) -> tuple[Headers, int, int]:
    """Return a record's own headers, its tries before now, and how often it was sent back from the dead letters."""
    said = headers[-len(SAID_OF_SENT_BACK) :]
    if [name for name, _ in said] == [TRIES, ROUNDS]:
        with suppress(StructError):
            tries, rounds = (
                min(max(int(one.unpack(content)), 0), MOST_COUNTED)
                for one, (_, content) in zip(SAID_OF_SENT_BACK, said, strict=True)
            )
            return headers[: -len(SAID_OF_SENT_BACK)], tries, rounds
    return headers, 0, 0


def describe(error: BaseException) -> tuple[str, str]:
    """Return the `error_type` and `error` of a dead letter for what was raised."""
    kind = type(error)
    message = str(error)
    if len(message) > LONGEST_ERROR:
        message = message[:LONGEST_ERROR] + "…"
    return f"{kind.__module__}.{kind.__qualname__}", message


def read(key: bytes | None, value: bytes | None, headers: Headers) -> DeadLetter:
    """Return the dead letter that a record of the dead-letter topic is.

    Raises `ValueError` when the record's last headers are not those of a dead letter, or do not hold what they must.
    """
    own, said = tuple(headers[: -len(NAMES)]), headers[-len(NAMES) :]
    if tuple(name for name, _ in said) != NAMES:
        raise ValueError("the record does not end with the headers of a dead letter")
    try:
        told: dict[str, Any] = {one.field: one.unpack(content) for one, (_, content) in zip(SAID, said, strict=True)}
    except StructError as wrong:
        raise ValueError(f"a number in the headers of the dead letter is none: {wrong}") from None
    return DeadLetter(key=key, value=value, headers=own, **told)
