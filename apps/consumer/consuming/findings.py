"""Remember what was learned about the records of an unfinished batch, so that its redelivery repeats no work."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from apps.consumer.consuming.policy import OutageLimit
from contracts.record import Record

Partition = tuple[str, int]
"""A topic and the number of a partition; aiokafka's `TopicPartition` is one."""

MOST_RECORDS = 10_000
"""Most records that are remembered. Beyond that the first ones are forgotten, and handled or isolated again."""


@dataclass(slots=True, eq=False)
class Finding:
    """What is known about a record.

    It is a suspect when it failed alone, and poison when it failed again after another call succeeded. `successes` is
    the number of successful handler calls before its last failure. `position` counts the records of the stream up to
    its first failure; None when it does not count towards an outage.
    """

    record: Record
    state: Literal["pending", "done", "rejected", "suspect", "poison"] = "pending"
    error: Exception | None = None
    tries: int = 0
    successes: int = 0
    position: int | None = None

    @property
    def key(self) -> object:
        """What records have in common whose order is kept: their partition and key."""
        return id(self.record) if self.record.key is None else (self.record.partition, self.record.key)

    @property
    def is_undecided(self) -> bool:
        """Whether the record is to be redelivered."""
        return self.state in {"pending", "suspect"}


class Memory:
    """What was learned about unfinished batches.

    It is bound to a record by its place and its content: a recreated topic has other records at the same places.
    """

    def __init__(self, most: int = MOST_RECORDS) -> None:
        self._most = most
        self._findings: dict[tuple[str, int, int], tuple[int, Finding]] = {}

    def __len__(self) -> int:
        return len(self._findings)

    def recall(self, records: Sequence[Record]) -> list[Finding]:
        """Return a finding for each record; none at all when nothing is known of any."""
        if not self._findings:
            return []
        findings = []
        for record in records:
            content, finding = self._findings.get(_place_of(record), (0, None))
            if finding is None or content != _content_of(record):
                finding = Finding(record)
            finding.record = record
            findings.append(finding)
        return findings if any(one.tries for one in findings) else []

    def keep(self, records: Sequence[Record], findings: Iterable[Finding]) -> None:
        """Replace what is known about the partitions of a batch by `findings`."""
        if self._findings:
            self.forget({(record.topic, record.partition) for record in records}.__contains__)
        for one in findings:
            self._findings[_place_of(one.record)] = _content_of(one.record), one
        while len(self._findings) > self._most:
            del self._findings[next(iter(self._findings))]

    def forget(self, is_gone: Callable[[Partition], bool]) -> None:
        """Forget what is known about some partitions."""
        self._findings = {place: one for place, one in self._findings.items() if not is_gone(place[:2])}


class FailureWindow:
    """Tells an outage of the handler from poison records, by how many of the stream's last records failed."""

    def __init__(self, limit: OutageLimit) -> None:
        self.seen = 0
        self._limit = limit
        self._failed: deque[int] = deque()

    def add(self, finished: int, failed: Iterable[int]) -> None:
        """Count the finished records of a batch, and the positions of those that were dead-lettered as poison."""
        self.seen += finished
        self._failed.extend(sorted(failed))

    def is_exceeded(self, failing: Collection[int], now: int) -> bool:
        """Return whether too many of the last records before `now` failed, including those at `failing`."""
        first = now - self._limit.window
        while self._failed and self._failed[0] <= first:
            self._failed.popleft()
        failed = len(self._failed) + sum(at > first for at in failing)
        return failed > self._limit.records and failed > self._limit.ratio * min(self._limit.window, now)


def _place_of(record: Record) -> tuple[str, int, int]:
    return record.topic, record.partition, record.offset


def _content_of(record: Record) -> int:
    return hash((record.timestamp, record.key, record.value))
