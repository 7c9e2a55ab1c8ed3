"""Policies of a stream: how it is batched, retried and limited. Declare them next to the handler, in `POLICIES`."""

import msgspec


def _require(condition: bool, name: str, expected: str, got: object) -> None:  # noqa: FBT001 - the condition itself
    if not condition:
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

    A suspect is retried `retries` times, alone and without backoff, before it counts as poison. While it is
    unknown whether the records or the handler are at fault, the backoff grows from `first_backoff_s` to
    `max_backoff_s`.
    """

    retries: int = 3
    first_backoff_s: float = 0.2
    max_backoff_s: float = 30.0

    def __post_init__(self) -> None:
        """Raise `ValueError` for fewer than one retry, or a backoff that does not grow."""
        first, maximum = self.first_backoff_s, self.max_backoff_s
        _require(self.retries >= 1, "retries", "at least 1", self.retries)
        _require(0 < first <= maximum, "first_backoff_s", f"above 0 and up to {maximum}", first)
        _require(maximum <= 600, "max_backoff_s", "at most 600", maximum)  # noqa: PLR2004 - a third of Kafka's poll timeout

    def backoff_s(self, number: int) -> float:
        """Return the backoff before the `number`-th consecutive retry; the first needs none."""
        return 0.0 if number <= 1 else min(self.first_backoff_s * 2 ** min(number - 2, 30), self.max_backoff_s)


class OutageLimit(msgspec.Struct, frozen=True, kw_only=True):
    """When failing records count as an outage: more than `records`, and more than `ratio` of the last `window`."""

    records: int = 100
    ratio: float = 0.1
    window: int = 1_000


class DeadLetterLimit(msgspec.Struct, frozen=True, kw_only=True):
    """When refused records halt the stream: `consecutive` of them, or more than `ratio` of the last `window`."""

    consecutive: int = 100
    ratio: float = 0.5
    window: int = 1_000


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """All policies of a stream.

    After `session_timeout_s` without a heartbeat Kafka gives the partitions to another member. Heartbeats run in the
    event loop: a handler that blocks it for less causes no rebalance. The partitions of an instance that crashed wait
    for as long. 45 s is the default of Java's client (KIP-735).
    """

    batching: Batching = Batching()
    retry: Retry = Retry()
    outage: OutageLimit = OutageLimit()
    dead_letter_limit: DeadLetterLimit = DeadLetterLimit()
    session_timeout_s: float = 45.0

    def __post_init__(self) -> None:
        """Raise `ValueError` for a session that Kafka does not allow by default."""
        session = self.session_timeout_s
        _require(6 <= session <= 1_800, "session_timeout_s", "6 to 1800", session)  # noqa: PLR2004 - Kafka's own limits


DEFAULT = Policy()
