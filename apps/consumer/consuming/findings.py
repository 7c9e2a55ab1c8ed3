"""Remember what was learned about an unfinished batch, so that its redelivery does not repeat the work.

A memory is bound to a record by its place and its content: a recreated topic has other records at the same places.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from contracts.record import Record

Place = tuple[str, int, int]
"""Topic, partition and offset of a record."""

MOST_RECORDS = 10_000
"""Most records that are remembered. Beyond that, the first ones are forgotten, and handled or isolated again."""


class Found(NamedTuple):
    """What was learned about a record; it is suspect when it failed alone, and nothing succeeded since.

    `error` and `tries` describe the last failure; `failed_at` is the number of successful calls of the handler by then.
    """

    kind: Literal["done", "refused", "poison", "suspect"]
    error: BaseException | None = None
    tries: int = 0
    failed_at: int = 0


class Memory:
    """What was learned about batches that were not finished."""

    def __init__(self, most: int = MOST_RECORDS) -> None:
        self._most = most
        self._found: dict[Place, tuple[int, Found]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def recall(self, records: Iterable[Record]) -> dict[int, Found]:
        """Return what is known about these records, each by its `id`."""
        known: dict[int, Found] = {}
        if self._found:
            for record in records:
                place = place_of(record)
                content, found = self._found.get(place, (0, None))
                if found is not None and content == _content_of(record):
                    known[id(record)] = found
        return known

    def keep(self, records: Sequence[Record], found: Mapping[int, Found]) -> None:
        """Replace what is known about the partitions of a batch by `found`, by the `id` of records."""
        if self._found:
            self.drop({(record.topic, record.partition) for record in records})
        if found:
            for record in records:
                if (one := found.get(id(record))) is not None:
                    self._found[place_of(record)] = _content_of(record), one
        while len(self._found) > self._most:
            del self._found[next(iter(self._found))]

    def retain(self, partitions: Collection[tuple[str, int]]) -> None:
        """Keep what is known about these partitions, of a topic each."""
        self._found = {place: one for place, one in self._found.items() if place[:2] in partitions}

    def drop(self, partitions: Collection[tuple[str, int]]) -> None:
        """Forget what is known about these partitions, of a topic each."""
        self._found = {place: one for place, one in self._found.items() if place[:2] not in partitions}

    def forget(self) -> None:
        """Forget everything, as before a seek: records that are read again are handled again."""
        self._found.clear()


def place_of(record: Record) -> Place:
    """Return the place of a record."""
    return record.topic, record.partition, record.offset


def _content_of(record: Record) -> int:
    return hash((record.timestamp, record.key, record.value))
