"""Remember the last rebalance of this instance, and why it happened as far as a member can know."""

from collections.abc import Collection
from datetime import UTC, datetime

import msgspec


class Rebalance(msgspec.Struct, frozen=True):
    """A rebalance that this instance took part in: when, why, and which partitions it has since."""

    at: str
    reason: str
    partitions: list[int]


class Rebalances:
    """The last rebalance; Kafka gives a member no cause, so the partitions before and after are compared."""

    def __init__(self) -> None:
        self.last: Rebalance | None = None
        self._joining = False
        self._member: str | None = None

    def joins(self) -> None:
        """Note that a new client is about to join the group."""
        self._joining = True

    def assigned(self, partitions: Collection[int], error: str | None = None, member: str | None = None) -> None:
        """Note the partitions of this instance after a rebalance; `error` is why its last client was replaced.

        Its id as a `member` is another when Kafka had counted it as gone.
        """
        before, now = set(self.last.partitions if self.last else ()), set(partitions)
        joined = "this instance joined the group" + (f" again: {error}" if error else "")
        expired = None not in {self._member, member} and self._member != member
        again = "this instance joined the group again: for Kafka it had been gone"
        reason = joined if self._joining else again if expired else _cause(before - now, now - before)
        self._member = member
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.last, self._joining = Rebalance(at, reason, sorted(now)), False


def _cause(lost: Collection[int], gained: Collection[int]) -> str:
    if lost and gained:
        return "the group distributed its partitions again"
    if lost:
        return f"another member joined and took {_named(lost)}"
    if gained:
        return f"another member left, or the topic grew: {_named(gained)} came here"
    return "another member joined or left; this instance kept its partitions"


def _named(partitions: Collection[int]) -> str:
    numbers = ", ".join(map(str, sorted(partitions)))
    return f"partition{'s' if len(partitions) > 1 else ''} {numbers}"
