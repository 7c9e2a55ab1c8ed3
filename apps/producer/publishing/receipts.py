"""The receipt of each record: its place on the topic, or why it may not have been written."""

from collections.abc import Sequence
from typing import Literal

import msgspec

Outcome = Literal["not_written", "unknown"]


class Receipt(msgspec.Struct, omit_defaults=True):
    """What became of one record.

    A record that was acknowledged has `partition`, `offset` and `timestamp` (milliseconds since 1970 UTC); `offset` is
    missing in memory (`TestKafkaBroker`), and in the rare case that the broker acknowledged a retry whose offset it had
    forgotten. Any other has `error`, and its `outcome`: `not_written` (never handed to the client, or refused at its
    first attempt) or `unknown` (it may have been written, or may still be).
    """

    id: str
    partition: int | None = None
    offset: int | None = None
    timestamp: int | None = None
    error: str | None = None
    outcome: Outcome | None = None


class Answer(msgspec.Struct):
    """How many records were delivered, and a receipt for every record in the order given."""

    delivered: int
    receipts: list[Receipt]


class BadLine(msgspec.Struct):
    """A line that is no record: its number from 1, and what is wrong with it. Nothing of it was written."""

    line: int
    error: str
    outcome: Literal["not_written"] = "not_written"


def ids_of(keys: Sequence[bytes]) -> list[str]:
    """Return the ids of receipts: the keys, as text."""
    return [key.decode() for key in keys]


def unwritten(keys: Sequence[bytes], error: Exception) -> list[Receipt]:
    """Return receipts of records that were not written for one reason."""
    return [Receipt(record_id, error=str(error), outcome="not_written") for record_id in ids_of(keys)]
