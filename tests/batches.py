"""Make batches for handlers under test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from apps.consumer.consuming.batch import Batch
from contracts.stream import Stream, encode

T = TypeVar("T")


@dataclass
class Stored:
    """A record as a client reads it from a topic."""

    partition: int = 0
    offset: int = 0
    timestamp: int = 1_700_000_000_000
    key: bytes | None = b"key"
    value: bytes | None = b""
    headers: Sequence[tuple[str, bytes | None]] = ()
    topic: str = "events"


def batch_of(stream: Stream[T], *values: T, tries: int = 0) -> Batch[T]:
    """Return a batch of values as the consumer would hand it over: on partition 0, from offset 0."""
    records = [
        Stored(offset=offset, key=key, value=encode(value), topic=stream.topic)
        for offset, (key, value) in enumerate(zip(stream.keys_of(values), values, strict=True))
    ]
    return Batch(records, values, [tries + 1] * len(values))
