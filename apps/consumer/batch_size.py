"""How many records the next batch may have, by how long the handler took for the last ones."""

from apps.consumer.policy import Batching


class BatchSize:
    """Keeps a call of the handler within the seconds of a policy; `records` is what the next batch may have."""

    def __init__(self, policy: Batching) -> None:
        self.records = policy.records
        self._policy = policy

    def adapt(self, records: int, seconds: float) -> None:
        """Note how long the handler took for some records."""
        if self._policy.seconds is None:
            return
        fitting = int(records * self._policy.seconds / max(seconds, 1e-9))
        self.records = max(1, min(self._policy.records, fitting, 2 * max(records, self.records)))
