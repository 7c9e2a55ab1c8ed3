"""Remember what was learned about the records of an unfinished batch, so that its redelivery repeats no work."""

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from apps.consumer.consuming.policy import OutageLimit
from contracts.record import Record

Partition = tuple[str, int]
"""A topic and the number of a partition; aiokafka's `TopicPartition` is one."""

MAX_RECORDS = 10_000
"""Most records that are remembered. Beyond that the first ones are forgotten, and handled or isolated again."""
MANY_RECORDS, MANY_RATIO = 10, 0.25
"""Failing records, and their share of the last ones, above which a record is judged more often."""
MAX_RECOVERIES = 100
"""Most recoveries of suspects that are counted."""
FIRST_CALLS = 2
"""Calls with a record that follow each other at once: its first one, and the retry of what failed then."""
RECENT_SUCCESSES = 100
"""Successful handler calls after which a recovery no longer counts."""
UNLIKELY = 1e-4
"""The share of good records that may be judged as poison by a handler that fails at random."""


FADING = 0.8
"""The weight of the earlier batches when another one is counted."""
FORGOTTEN = 0.1
"""Bad records of the last batches, faded, that no longer matter."""
CHUNK = 2.5
"""Records of a chunk, times the root of the share of bad ones: repeated records and calls then cost about the same."""
LAST_CHUNK = 16
"""The part of the records that is handed over later, after the judgement of the others: a sixteenth."""


@dataclass(slots=True, eq=False)
class Finding:
    """What the handler calls so far show about a record.

    It is a suspect when it failed alone, and poison when it failed again after another call succeeded: `judged` counts
    how often it did. `successes` is the number of successful handler calls before its last failure. `position` counts
    the records of the stream up to its first failure; None when it does not count towards an outage.
    """

    record: Record
    state: Literal["pending", "done", "rejected", "suspect", "poison"] = "pending"
    error: Exception | None = None
    tries: int = 0
    successes: int = 0
    judged: int = 0
    position: int | None = None

    @property
    def key(self) -> object:
        """What records have in common whose order is kept: their partition and key."""
        return id(self.record) if self.record.key is None else (self.record.partition, self.record.key)

    @property
    def is_bad(self) -> bool:
        """Whether the record is to be dead-lettered."""
        return self.state in {"rejected", "poison"} and self.error is not None

    @property
    def is_undecided(self) -> bool:
        """Whether the record is to be redelivered."""
        return self.state in {"pending", "suspect"}


def completed(findings: Sequence[Finding], records: Sequence[Record]) -> list[Finding]:
    """Return a finding for each record: those without one are done."""
    known = {id(one.record): one for one in findings}
    return [known.get(id(record)) or Finding(record, "done", tries=1) for record in records]


class Memory:
    """What was learned about unfinished batches.

    It is bound to a record by its place and its content: a recreated topic has other records at the same places.
    """

    def __init__(self, max_records: int = MAX_RECORDS) -> None:
        self._max_records = max_records
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
        """Replace what is known about the records of a batch, and before them, by `findings`.

        What is known of later records is kept: a poll may return a part of what is redelivered.
        """
        if self._findings:
            last = {(record.topic, record.partition): record.offset for record in records}
            self._findings = {
                place: one for place, one in self._findings.items() if place[2] > last.get(place[:2], -math.inf)
            }
        for one in findings:
            self._findings[_place_of(one.record)] = _content_of(one.record), one
        while len(self._findings) > self._max_records:
            del self._findings[next(iter(self._findings))]

    def forget(self, is_gone: Callable[[Partition], bool]) -> None:
        """Forget what is known about some partitions."""
        self._findings = {place: one for place, one in self._findings.items() if not is_gone(place[:2])}


class Recoveries:
    """Decides how often a record must be judged: by how often recent suspects failed before they succeeded.

    A handler whose calls are limited by rate, or whose backend restarts again and again, fails for good records too.
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[int, int]] = deque(maxlen=MAX_RECOVERIES)

    def note(self, suspect: Finding, successes: int) -> None:
        """Count a suspect that has succeeded, unless its first retry did: that was at once."""
        if suspect.tries > FIRST_CALLS:
            self._recent.append((successes, suspect.judged))

    def settle(self) -> None:
        """Forget recoveries of which none was late: no record is undecided, so that an outage ended with them."""
        if not any(judged for _, judged in self._recent):
            self._recent.clear()

    def judgements_needed(self, successes: int) -> int:
        """Return after how many failed judgements a good record would be among `UNLIKELY` few."""
        while self._recent and self._recent[0][0] < successes - RECENT_SUCCESSES:
            self._recent.popleft()
        if not self._recent:
            return 1
        failed = sum(judged for _, judged in self._recent)
        return math.ceil(math.log(UNLIKELY, (failed + 0.5) / (failed + len(self._recent) + 1)))


class ChunkSize:
    """Decides how many records to hand over at once, by how many of the last batches were bad.

    A handler that raises has handled the records before a bad one in vain. So chunks shrink with the root of the share
    of bad records: with larger ones more records are handled again, with smaller ones there are more calls. A handler
    that names its failures repeats nothing. But each smaller chunk at the end shows that it still works.
    """

    def __init__(self) -> None:
        self._records = self._bad = 0.0
        self._is_naming = False

    def note(self, records: int, bad: int, *, is_naming: bool) -> None:
        """Count a batch; earlier ones fade."""
        self._records = FADING * self._records + records
        self._bad = FADING * self._bad + bad
        if bad:
            self._is_naming = is_naming

    def limit(self, records: int) -> int:
        """Return how many of the records to hand over at once: all of them when few failed lately."""
        if self._bad < FORGOTTEN:
            return records
        if self._is_naming:
            return records - records // LAST_CHUNK
        size = math.ceil(CHUNK * math.sqrt(self._records / self._bad))
        return size if 2 * size < records else records


class FailureWindow:
    """Distinguishes an outage of the handler from poison records, by how many of the stream's last records failed."""

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
        return self._is_more(failing, now, self._limit.records, self._limit.ratio)

    def are_many(self, failing: Collection[int], now: int) -> bool:
        """Return whether many failed, although fewer than the limit: they may be no poison."""
        return self._is_more(failing, now, MANY_RECORDS, MANY_RATIO)

    def _is_more(self, failing: Collection[int], now: int, records: int, ratio: float) -> bool:
        if len(self._failed) + len(failing) <= records:
            return False
        first = now - self._limit.window
        while self._failed and self._failed[0] <= first:
            self._failed.popleft()
        failed = len(self._failed) + sum(at > first for at in failing)
        return failed > records and failed > ratio * min(self._limit.window, now)


def _place_of(record: Record) -> tuple[str, int, int]:
    return record.topic, record.partition, record.offset


def _content_of(record: Record) -> int:
    return hash((record.timestamp, record.key, record.value))
