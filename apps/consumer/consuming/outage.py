"""Tell an outage of the handler from poison records, by how many of the last records failed."""

from collections import deque
from collections.abc import Collection, Sequence

from apps.consumer.consuming.policy import OutageLimit


class FailureWindow:
    """Which of a stream's last records failed in the handler and were dead-lettered, by their position."""

    def __init__(self, limit: OutageLimit) -> None:
        self.seen = 0
        self._limit = limit
        self._failed: deque[int] = deque()

    def add(self, finished: int, failed: Sequence[int]) -> None:
        """Count records of a batch, of which some failed."""
        self.seen += finished
        self._failed.extend(sorted(failed))

    def exceeded(self, failing: Collection[int], now: int) -> bool:
        """Return whether too many of the last records failed, including those at the positions `failing`."""
        first = now - self._limit.window
        while self._failed and self._failed[0] <= first:
            self._failed.popleft()
        failed = len(self._failed) + sum(at > first for at in failing)
        return failed > self._limit.records and failed > self._limit.ratio * min(self._limit.window, now)
