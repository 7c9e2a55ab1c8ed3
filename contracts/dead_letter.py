"""A dead letter: a record that could not be consumed, byte for byte, and what became of it.

Key, value and headers are those of the record. What became of it stands in headers behind the record's own, named and
encoded as Spring Kafka's `DeadLetterPublishingRecoverer` does it (integers big-endian, text UTF-8), so that its tools
read them too. Where the record came through the dead letters before, its older set stays among its own headers.
"""

from collections.abc import Sequence
from struct import Struct as Packing
from struct import error as StructError  # noqa: N812 - it is an exception

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

NAMES = (TOPIC, PARTITION, OFFSET, TIMESTAMP, GROUP, ERROR_TYPE, ERROR, TRIES)
INT32 = Packing(">i")
INT64 = Packing(">q")

LONGEST_ERROR = 1_000
"""Characters of an error's message that are kept: it may quote the whole value."""


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that could not be consumed, where it came from and why.

    `timestamp` is the record's own, in milliseconds since 1970 UTC. `tries` counts the attempts to consume it, from 1.
    `error_type` is the Python class of the error with its module, `error` its message.
    """

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
        return [
            *self.headers,
            (TOPIC, self.topic.encode()),
            (PARTITION, INT32.pack(self.partition)),
            (OFFSET, INT64.pack(self.offset)),
            (TIMESTAMP, INT64.pack(self.timestamp)),
            (GROUP, self.group.encode()),
            (ERROR_TYPE, self.error_type.encode()),
            (ERROR, self.error.encode("utf-8", "backslashreplace")),
            (TRIES, INT32.pack(self.tries)),
        ]


def sent_back(letter: DeadLetter) -> list[Header]:
    """Return the headers of the record that is sent back: its own, its tries so far and how often it was sent back."""
    own, _, rounds = history(letter.headers)
    return [*own, (TRIES, INT32.pack(letter.tries)), (ROUNDS, INT32.pack(rounds + 1))]


def history(headers: Headers) -> tuple[Headers, int, int]:
    """Return a record's own headers, its tries before now, and how often it was sent back from the dead letters."""
    if [name for name, _ in headers[-2:]] == [TRIES, ROUNDS]:
        (_, tries), (_, rounds) = headers[-2:]
        if tries and rounds and len(tries) == len(rounds) == INT32.size:
            return headers[:-2], INT32.unpack(tries)[0], INT32.unpack(rounds)[0]
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
    topic, partition, offset, timestamp, group, error_type, error, tries = (content or b"" for _, content in said)
    try:
        return DeadLetter(
            key=key,
            value=value,
            headers=own,
            topic=topic.decode(),
            partition=INT32.unpack(partition)[0],
            offset=INT64.unpack(offset)[0],
            timestamp=INT64.unpack(timestamp)[0],
            group=group.decode(),
            error_type=error_type.decode(),
            error=error.decode(),
            tries=INT32.unpack(tries)[0],
        )
    except StructError as wrong:
        raise ValueError(f"a number in the headers of the dead letter is none: {wrong}") from None
