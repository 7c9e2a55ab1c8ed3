"""Halt instead of dead-lettering everything: when nearly all records are refused, the data is not at fault.

After the manner of Sentry's Arroyo (`DlqLimit`): a limit of consecutive refused records, and one of their ratio; both
for each partition, and for all that this instance consumes of the stream, in the order in which it consumes it.
"""

from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import NamedTuple

from apps.consumer.consuming.dead_letters import BadRecord
from apps.consumer.consuming.policy import DEFAULT, HaltLimit
from contracts.dead_letter import history
from contracts.record import Record

STREAM = -1
"""The key of the whole stream among the partition numbers."""


class Row(NamedTuple):
    """How many records were seen, how many of the last were refused in a row, and the positions of refused ones."""

    seen: int = 0
    consecutive: int = 0
    refused_at: tuple[int, ...] = ()


class Limit:
    """Judges batches of a stream, in the order in which this instance consumes them.

    A good record ends a row of refused ones. A record that was redriven, or that failed in the handler, neither ends
    a row nor counts.
    """

    def __init__(self, policy: HaltLimit = DEFAULT.halt) -> None:
        self._policy = policy
        self._rows: dict[int, Row] = {}
        self._reviewed: dict[int, Row] = {}
        self._halted = False

    @property
    def consecutive(self) -> int:
        """The number of consecutive refused records that halts."""
        return self._policy.consecutive

    def review(
        self,
        records: Sequence[Record],
        refused: Sequence[BadRecord],
        passed_over: Iterable[BadRecord] = (),
        accepted: Container[int] = (),
    ) -> str | None:
        """Return why the refused among `records` must halt the stream, or None; `count` makes the batch count.

        Those of `accepted` partitions, and those `passed_over`, do not count. After a halt every counted one halts
        again.
        """
        self._reviewed = {}
        counting = {
            id(one.record) for one in refused if one.record.partition not in accepted and not is_redriven(one.record)
        }
        if not counting and not self._rows:
            return None
        if counting and self._halted:
            return "a record was refused again after a halt"
        neutral = {id(one.record) for one in (*refused, *passed_over)} - counting
        outcomes: dict[int, list[bool]] = {STREAM: []}
        for record in records:
            if id(record) not in neutral:
                is_refused = id(record) in counting
                outcomes[STREAM].append(is_refused)
                outcomes.setdefault(record.partition, []).append(is_refused)
        for number, of_row in outcomes.items():
            row, excess = self._continue(self._rows.get(number, Row()), of_row)
            if excess:
                return excess + (" of the stream" if number == STREAM else f" of partition {number}")
            self._reviewed[number] = row
        return None

    def count(self) -> None:
        """Count the last reviewed batch: it is done, and will not be redelivered."""
        if self._reviewed:
            self._rows = _with_refused({**self._rows, **self._reviewed})
            self._reviewed = {}

    def halt(self) -> None:
        """Halt at each refused record from now on, until `forget`, or until a batch had none."""
        self._halted = True

    def passed(self) -> None:
        """Note that a batch had no bad record: the halt is over."""
        self._halted = False

    def forget(self) -> None:
        """Clear the history."""
        self._rows.clear()
        self._halted = False

    def _continue(self, row: Row, outcomes: Sequence[bool]) -> tuple[Row, str | None]:
        seen, consecutive, refused_at = row.seen, row.consecutive, deque(row.refused_at)
        if not any(outcomes):
            seen, consecutive = seen + len(outcomes), 0 if outcomes else consecutive
            outcomes = ()
        for is_refused in outcomes:
            seen += 1
            consecutive = consecutive + 1 if is_refused else 0
            if is_refused:
                refused_at.append(seen)
                while refused_at[0] <= seen - self._policy.window:
                    refused_at.popleft()
                if consecutive >= self._policy.consecutive:
                    return row, f"{consecutive} consecutive records were refused"
                if len(refused_at) > self._policy.ratio * self._policy.window:
                    return row, f"more than {self._policy.ratio:.0%} of the last {self._policy.window:,} were refused"
        recent = tuple(at for at in refused_at if at > seen - self._policy.window)
        return Row(seen, consecutive, recent), None


def is_redriven(record: Record) -> bool:
    """Return whether a record was sent back from the dead letters."""
    return history(record.headers)[2] > 0


def _with_refused(rows: Mapping[int, Row]) -> dict[int, Row]:
    """Return the rows that hold a refused record: the others cost nothing."""
    return {number: row for number, row in rows.items() if row.refused_at}
