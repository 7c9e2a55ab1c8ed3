"""Keeps nothing of records whose keys were deleted later but their places and keys."""

from collections.abc import Iterable, Mapping
from copy import copy

from apps.chassis.internals.fetched_batches import is_tombstone
from contracts.record import Record

Deletions = Mapping[bytes | None, Record]
"""The last deletion of each key."""


def deletions_in(records: Iterable[Record]) -> Deletions:
    """Return the deletions among some records of a stream that takes deletions."""
    return {record.key: record for record in records if is_tombstone(record)}


def without_deleted(records: Iterable[Record], deletions: Deletions) -> list[Record]:
    """Return records without values and headers where their keys were deleted later; others as they are."""
    return [_forgotten(record) if _is_deleted(record, deletions.get(record.key)) else record for record in records]


def _is_deleted(record: Record, deletion: Record | None) -> bool:
    """Return whether a deletion is newer than a record; in another partition, if some were added, by its time."""
    if deletion is None:
        return False
    if deletion.partition == record.partition:
        return deletion.offset > record.offset
    return deletion.timestamp >= record.timestamp


def _forgotten(record: Record) -> Record:
    forgotten = copy(record)  # the handler may still have the other one
    forgotten.value, forgotten.headers = None, ()
    return forgotten
