"""What a handler gets: a batch of records with their decoded values, of which it may name single ones as failed."""

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from apps.consumer.consuming.containment import copy_of
from contracts.dead_letter import first_place
from contracts.record import Place, Record

T = TypeVar("T")


class Reject(Exception):
    """Raise this from a handler for records that must not be retried.

    For several records, the halves are tried at once, until each rejected record is alone; it is dead-lettered.
    `Batch.reject` names single records instead.
    """


class NotTried(Exception):
    """The failure of a record that waits because an earlier one of its key failed."""

    def __str__(self) -> str:
        """Return why it waits."""
        return "an earlier record of its key failed"


KEPT_BASES = (Reject, NotTried)
"""Classes of errors that a copy of a handler's error keeps, because each is treated differently."""


class Received(Generic[T]):
    """A record and its decoded value.

    `attempt` counts from 1 how often the handler is called with the record since it was read from Kafka.
    """

    __slots__ = ("_record", "attempt", "index", "value")

    def __init__(self, record: Record, value: T, index: int, attempt: int) -> None:
        self.value = value
        self.attempt = attempt
        self.index = index
        self._record = record

    @property
    def key(self) -> bytes | None:
        """The record's key."""
        return self._record.key

    @property
    def headers(self) -> tuple[tuple[str, bytes | None], ...]:
        """Its headers: a name may be there more than once, a value may be null."""
        return tuple(self._record.headers)

    @property
    def topic(self) -> str:
        """The topic that it stands on."""
        return self._record.topic

    @property
    def partition(self) -> int:
        """Its partition."""
        return self._record.partition

    @property
    def offset(self) -> int:
        """Its offset in the partition."""
        return self._record.offset

    @property
    def timestamp(self) -> int:
        """Its timestamp in milliseconds since 1970 UTC; -1 when it has none."""
        return self._record.timestamp

    @property
    def origin(self) -> Place:
        """Where it stood first: the place of the record that was redriven, its own place when none was.

        It identifies a record, however often it is redelivered and redriven.
        """
        record = self._record
        place = Place(record.topic, record.partition, record.offset)
        return first_place(record.headers, place) if record.headers else place

    def is_of(self, record: Record) -> bool:
        """Return whether it is this record."""
        return self._record is record

    def __repr__(self) -> str:
        """Return its place, and nothing of its content: it may be personal data."""
        return f"<record of {self.topic}-{self.partition} offset {self.offset}>"


class Batch(Generic[T]):
    """Records of several partitions, those of one partition in the order of their offsets.

    `values` are the decoded values, in the same order. Iterating gives a `Received` for each record. When the handler
    returns, all records are done but those that it named by `fail` or `reject`, and those behind a failed one of their
    key: they are handed over again after it. When the handler raises, only `reject` counts.
    """

    __slots__ = ("_attempts", "_failed", "_is_closed", "_named", "_note_late", "_process", "_records", "values")

    def __init__(self, records: Sequence[Record], values: Sequence[T], attempts: Sequence[int] | None = None) -> None:
        self.values = tuple(values)
        self._records = records
        self._attempts = attempts
        self._named: dict[int, Exception] = {}
        self._failed: dict[object, int] = {}
        self._is_closed = False
        self._note_late: NoteLate | None = None
        self._process = os.getpid()

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.values)

    def __iter__(self) -> Iterator[Received[T]]:
        """Return the records with their values, in their order."""
        attempts = self._attempts
        for index, (record, value) in enumerate(zip(self._records, self.values, strict=True)):
            yield Received(record, value, index, attempts[index] if attempts else 1)

    def fail(self, record: Received[T], error: BaseException | str) -> None:
        """Name a record that failed and is to be retried, and after it those of its key that are behind it.

        Raises `ValueError` for a record of another batch, and `RuntimeError` when the handler has returned, or in
        another process than its own.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                f"{record} is named in another process, which does not count: name it where the batch is"
            )
        if not (record.index < len(self.values) and record.is_of(self._records[record.index])):
            raise ValueError(f"{record} is not of this batch")
        copy = copy_of(RuntimeError(error) if isinstance(error, str) else error, KEPT_BASES)
        self._named[record.index] = copy
        if record.key is not None and not isinstance(copy, Reject):
            key = record.partition, record.key
            self._failed[key] = min(record.index, self._failed.get(key, record.index))
        if self._is_closed:  # known last: it may be closed while a thread of the handler names
            if self._note_late is not None:
                self._note_late(self._records[record.index], copy)
                self._note_late = None
            raise RuntimeError(f"{record} is named too late: its handler has returned or was cancelled. Await it all")

    def reject(self, record: Received[T], reason: str) -> None:
        """Name a record that must not be retried: it is dead-lettered. Raises the errors of `fail`."""
        self.fail(record, Reject(reason))

    def named(self) -> Mapping[int, Exception]:
        """Return copies of the errors of the records that were named, by their place in the batch; the last of each.

        Those behind a failed one of their key have failed too: what was done with them came too early.
        """
        named = self._named.copy()
        if self._failed:
            for index, record in enumerate(self._records):
                if index > self._failed.get(_key_of(record), index):
                    named.setdefault(index, NotTried())
        return dict(sorted(named.items()))

    def close(self, note_late: "NoteLate | None" = None) -> None:
        """Accept no more names, because the call has ended; `note_late` gets the first that comes nevertheless."""
        self._is_closed, self._note_late = True, note_late


def _key_of(record: Record) -> object:
    return record.partition, record.key


NoteLate = Callable[[Record, Exception], object]
"""Takes a record that was named too late, and its error; any thread may call it."""
Handle = Callable[[Batch[Any]], Awaitable[object]]
"""A handler as the consumer calls it."""
Handler = Callable[[Batch[T]], Awaitable[None]] | Callable[[Batch[T]], None]
"""A handler as it is written: asynchronous, or a plain function, which runs in a worker thread."""
