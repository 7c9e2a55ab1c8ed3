"""Remembers where in a partition each search for letters has to begin, so that a further call reads on.

What a filter does not select, or what is held, is so for good: it is read once. What was sent back or discarded may be
restored: then searches begin there again. A letter of a deleted key may be sent back once its topic is recreated: each
call looks at it again. Only where these are more than a call can read, further calls go on behind them, until one
comes to the end.
"""

from collections.abc import Hashable
from typing import NamedTuple

from apps.consumer.redriving.marks import Intervals, minus

MAX_SEARCHES = 100
"""Searches whose beginnings are remembered, for each partition."""


class Beginning(NamedTuple):
    """The first offset to read, and that of the first letter of a deleted key before it, if it is to be read again."""

    at: int = 0
    deleted_from: int | None = None

    def moved(self, at: int, deleted_from: int | None, *, is_late: bool) -> "Beginning":
        """Return where a search goes on that has reached an offset, or was too late to read further.

        `deleted_from` is the first letter of a deleted key that it read before that.
        """
        if self.deleted_from is not None:
            return Beginning(at, self.deleted_from)
        moved = Beginning(at, deleted_from)
        return moved if is_late else moved.again

    @property
    def again(self) -> "Beginning":
        """Where a search begins that reads letters of deleted keys again."""
        return self if self.deleted_from is None else Beginning(min(self.at, self.deleted_from))


class Beginnings:
    """Where searches begin in some partitions, by what they look for.

    What is kept is bounded by the marks of each partition, which fit into a record, and by the number of searches.
    """

    def __init__(self) -> None:
        self._unwanted: dict[Hashable, Intervals] = {}
        self._of: dict[Hashable, dict[Hashable, Beginning]] = {}

    def of(self, partition: Hashable, unwanted: Intervals) -> dict[Hashable, Beginning]:
        """Return the beginnings in a partition, to be changed by `remember`; `unwanted` are its letters with marks.

        When marks are taken back meanwhile, by another call, the change has no effect.
        """
        wanted_again = minus(self._unwanted.get(partition, []), unwanted)
        self._unwanted[partition] = unwanted
        if wanted_again:
            first, _ = wanted_again[0]
            known = self._of.get(partition, {})
            self._of[partition] = {what: one._replace(at=min(one.at, first)) for what, one in known.items()}
        return self._of.setdefault(partition, {})

    def forget(self, partition: Hashable) -> None:
        """Let all searches begin at the start of a partition again, which has other letters now."""
        self._of.pop(partition, None)
        self._unwanted.pop(partition, None)

    def begin_again(self, what: Hashable) -> None:
        """Let searches read letters of deleted keys again, after one that has come to the end."""
        for beginnings in self._of.values():
            if what in beginnings:
                beginnings[what] = beginnings[what].again


def remember(beginnings: dict[Hashable, Beginning], what: Hashable, beginning: Beginning) -> None:
    """Remember where a search begins; forget that of the search that was made longest ago where they are too many."""
    beginnings.pop(what, None)
    beginnings[what] = beginning
    if len(beginnings) > MAX_SEARCHES:
        del beginnings[next(iter(beginnings))]
