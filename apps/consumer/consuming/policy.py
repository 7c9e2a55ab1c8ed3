"""Policies of a stream: how it is batched, retried and limited. Declare them next to the handler."""

import msgspec


def _require(holds: bool, name: str, expected: str, got: object) -> None:  # noqa: FBT001 - the condition itself
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got}")


class Batching(msgspec.Struct, frozen=True, kw_only=True):
    """How large a batch may be: at most `records`, and about `partition_bytes` of each partition.

    With `seconds`, batches shrink after a handler call that took longer, and grow again later.
    """

    records: int = 2_000
    partition_bytes: int = 1024 * 1024
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for a size below 1, or seconds that are not above 0."""
        _require(self.records >= 1, "records", "at least 1", self.records)
        _require(self.partition_bytes >= 1, "partition_bytes", "at least 1", self.partition_bytes)
        _require(self.seconds is None or self.seconds > 0, "seconds", "above 0, or None", self.seconds)


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How failures are retried.

    A poison record is retried `attempts` times, alone and without a pause, before it is dead-lettered; only once after
    a batch has spent `budget_s` seconds on this. While it is unknown whether the records or the handler are at fault,
    the pauses grow from `first_s` to `longest_s`.
    """

    attempts: int = 3
    first_s: float = 0.2
    longest_s: float = 30.0
    budget_s: float = 10.0

    def __post_init__(self) -> None:
        """Raise `ValueError` for fewer than one attempt, or pauses that do not grow."""
        _require(self.attempts >= 1, "attempts", "at least 1", self.attempts)
        _require(0 < self.first_s <= self.longest_s, "first_s", f"above 0 and up to {self.longest_s}", self.first_s)
        _require(self.longest_s <= 600, "longest_s", "at most 600", self.longest_s)  # noqa: PLR2004 - a third of Kafka's poll timeout
        _require(self.budget_s >= 0, "budget_s", "at least 0", self.budget_s)

    def pause_s(self, waits: int) -> float:
        """Return the pause before the `waits`-th consecutive retry; the first needs none."""
        return 0.0 if waits <= 1 else min(self.first_s * 2 ** min(waits - 2, 30), self.longest_s)


class OutageLimit(msgspec.Struct, frozen=True, kw_only=True):
    """When failing records count as an outage: more than `records`, and more than `ratio` of the last `window`."""

    records: int = 100
    ratio: float = 0.1
    window: int = 1_000


class HaltLimit(msgspec.Struct, frozen=True, kw_only=True):
    """When refused records halt the stream: `consecutive` of them, or more than `ratio` of the last `window`."""

    consecutive: int = 100
    ratio: float = 0.5
    window: int = 1_000


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """All policies of a stream."""

    batching: Batching = Batching()
    retry: Retry = Retry()
    outage: OutageLimit = OutageLimit()
    halt: HaltLimit = HaltLimit()


DEFAULT = Policy()
