"""Receipts: the place of each record on the topic, or the error and what is known of the record."""

from collections.abc import Sequence
from typing import Literal

import msgspec

Outcome = Literal["not_written", "unknown"]


class Receipt(msgspec.Struct, omit_defaults=True):
    """The result of one record; `id` is its key as text.

    An acknowledged record has `partition`, `offset` and `timestamp` (milliseconds since 1970 UTC). `offset` is missing
    in memory (`TestKafkaBroker`), and in the rare case that the broker acknowledged a retry whose offset it no longer
    knew. Any other record has `error` and an `outcome`: `not_written` (never handed to the client, or refused at the
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
    """An invalid line: its number, counted from 1, and what is wrong with it. Nothing of it was written."""

    line: int
    error: str
    outcome: Literal["not_written"] = "not_written"


def ids_of(keys: Sequence[bytes]) -> list[str]:
    """Return the ids of receipts: the keys as text."""
    return [key.decode() for key in keys]


def unwritten(keys: Sequence[bytes], error: Exception) -> list[Receipt]:
    """Return receipts of records that were not written because of one error."""
    return [Receipt(record_id, error=str(error), outcome="not_written") for record_id in ids_of(keys)]
