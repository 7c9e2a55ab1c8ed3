"""When nearly everything is bad it is not the data: the consumer halts, or all of the topic would be dead-lettered.

After the manner of Sentry's Arroyo (`DlqLimit`): a limit of bad records in a row, and one of their share, a partition.
"""

from collections import deque
from collections.abc import Container, Iterable, Sequence

from apps.consumer.dead_letters import BadRecord
from apps.consumer.window import Record


class Limit:
    """Judges batches. By default it refuses the 100th bad record in a row, and the 501st of the last 1,000."""

    def __init__(self, in_a_row: int = 100, share: float = 0.5, of_last: int = 1_000) -> None:
        self.in_a_row = in_a_row
        self._share = share
        self._of_last = of_last
        self._histories: dict[int, deque[bool]] = {}
        self._reviewed: dict[int, deque[bool]] = {}

    def review(self, good: Iterable[Record], bad: Sequence[BadRecord], accepted: Container[int] = ()) -> str | None:
        """Return why a batch has too many bad records, or None; `count` has it count from then on.

        The bad records of `accepted` partitions are none. A partition whose history holds no bad record costs nothing.
        """
        self._reviewed = {}
        if not bad and not self._histories:
            return None
        outcomes: dict[int, list[tuple[int, bool]]] = {}
        for record in good:
            outcomes.setdefault(record.partition, []).append((record.offset, False))
        for record, *_ in bad:
            if record.partition not in accepted:
                outcomes.setdefault(record.partition, []).append((record.offset, True))
        for partition, of_partition in outcomes.items():
            history = self._histories.get(partition, deque(maxlen=self._of_last)).copy()
            for offset, is_bad in sorted(of_partition):
                history.append(is_bad)
                if is_bad and (reason := self._excess(history)):
                    return f"{reason} of partition {partition}, the last at offset {offset}"
            self._reviewed[partition] = history
        return None

    def count(self) -> None:
        """Have the batch that was reviewed last count: it is done, and does not come again."""
        self._histories |= self._reviewed
        self._histories = {partition: history for partition, history in self._histories.items() if any(history)}

    def forget(self) -> None:
        """Begin anew, as after a start."""
        self._histories.clear()

    def _excess(self, history: deque[bool]) -> str | None:
        if sum(history) > self._share * self._of_last:
            return f"more than {self._share:.0%} of the last {self._of_last:,} records are bad"
        if len(history) >= self.in_a_row and all(history[-at] for at in range(1, self.in_a_row + 1)):
            return f"{self.in_a_row} records in a row are bad"
        return None
