"""Halt instead of dead-lettering everything: when nearly all records are refused, the data is not at fault.

There are two limits, as in Sentry's Arroyo (`DlqLimit`): consecutive refused records, and their ratio. Both apply to
each partition, and for all records of the stream that this instance consumes, in the order in which it consumes them.
"""

from collections import deque
from collections.abc import Container, Sequence
from typing import NamedTuple

from apps.consumer.consuming.dead_letters import BadRecord
from apps.consumer.consuming.policy import DEFAULT, DeadLetterLimit
from apps.consumer.consuming.redrive_addressing import is_redriven
from contracts.record import Record

STREAM = -1
"""The key of the whole stream among the partition numbers."""


class Row(NamedTuple):
    """How many records were seen, how many of the last were refused in a row, and the positions of refused ones."""

    seen: int = 0
    consecutive: int = 0
    refused_at: tuple[int, ...] = ()


class Excess(NamedTuple):
    """Why a stream must halt, and the bad record with which that was so."""

    reason: str
    bad: BadRecord


class DeadLetterLimiter:
    """Reviews the batches of a stream, in the order in which this instance consumes them.

    A good record ends a row of refused ones. A record that was redriven, or that is poison, neither ends a row nor
    counts. After a halt every counted record halts again, until a batch had none.
    """

    def __init__(self, policy: DeadLetterLimit = DEFAULT.dead_letter_limit) -> None:
        self._policy = policy
        self._rows: dict[int, Row] = {}
        self._reviewed: dict[int, Row] = {}
        self._is_halted = False

    def review(
        self, records: Sequence[Record], bad: Sequence[BadRecord], accepted: Container[int] = ()
    ) -> Excess | None:
        """Return why the bad ones among `records` must halt the stream, or None; `count` makes the batch count.

        Those of `accepted` partitions do not count.
        """
        self._reviewed = {}
        counting = {
            id(one.record): one
            for one in bad
            if not (one.is_poison or one.record.partition in accepted or is_redriven(one.record))
        }
        if counting and self._is_halted:
            return Excess("a record was refused again after a halt", next(iter(counting.values())))
        if records and not bad:
            self._is_halted = False
        if not counting and not self._rows:
            return None
        neutral = {id(one.record) for one in bad} - counting.keys()
        outcomes: dict[int, list[BadRecord | None]] = {}
        for record in records:
            if id(record) not in neutral:
                for number in (STREAM, record.partition):
                    outcomes.setdefault(number, []).append(counting.get(id(record)))
        for number, refused in outcomes.items():
            row = self._continue(self._rows.get(number, Row()), refused)
            if isinstance(row, Excess):
                self._is_halted = True
                return row._replace(
                    reason=f"{row.reason} of {'the stream' if number == STREAM else f'partition {number}'}"
                )
            self._reviewed[number] = row
        return None

    def count(self) -> None:
        """Count the last reviewed batch: it is committed, and will not be redelivered."""
        if self._reviewed:
            rows = {**self._rows, **self._reviewed}
            self._rows = {number: row for number, row in rows.items() if row.refused_at}  # the others cost nothing
            self._reviewed = {}

    def forget_reviewed(self) -> None:
        """Forget the last reviewed batch: it will be redelivered."""
        self._reviewed = {}

    def forget(self) -> None:
        """Clear the history."""
        self._rows.clear()
        self._is_halted = False

    def _continue(self, row: Row, refused: Sequence[BadRecord | None]) -> Row | Excess:
        """Return a row with more records behind it, or which limit it exceeds."""
        seen, consecutive, refused_at = row.seen, row.consecutive, deque(row.refused_at)
        for bad in refused:
            seen += 1
            consecutive = consecutive + 1 if bad else 0
            if bad:
                refused_at.append(seen)
            while refused_at and refused_at[0] <= seen - self._policy.window:
                refused_at.popleft()
            if bad and consecutive >= self._policy.consecutive:
                return Excess(f"{consecutive} consecutive records were refused", bad)
            if bad and len(refused_at) > self._policy.ratio * self._policy.window:
                return Excess(
                    f"more than {self._policy.ratio:.0%} of the last {self._policy.window:,} were refused", bad
                )
        return Row(seen, consecutive, tuple(refused_at))
