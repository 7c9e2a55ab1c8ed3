"""Limits the next batch by how long the handler took for the last ones."""

from apps.consumer.consuming.policy import Batching


class BatchSize:
    """Keeps a handler call within the seconds of a policy; `records` is the size of the next batch."""

    def __init__(self, policy: Batching) -> None:
        self.records = policy.records
        self._policy = policy

    def adapt(self, records: int, seconds: float) -> None:
        """Record how long the handler took for a number of records."""
        if self._policy.seconds is None:
            return
        fitting = int(records * self._policy.seconds / max(seconds, 1e-9))
        self.records = max(1, min(self._policy.records, fitting, 2 * max(records, self.records)))
