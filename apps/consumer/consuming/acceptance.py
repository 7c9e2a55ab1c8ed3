"""Dead-letter bad records without a limit, because an operator accepts those that wait now."""

from collections.abc import Collection, Sequence

from contracts.record import Record


class Acceptance:
    """Accepts the bad records of each partition until it has recovered.

    It has recovered when a batch has only good records of it, or when no record waits there.
    """

    def __init__(self) -> None:
        self.is_on = False
        self._recovered: set[int] = set()

    def begin(self) -> None:
        """Accept bad records in all partitions."""
        self.is_on = True
        self._recovered.clear()

    def end(self) -> None:
        """Accept no bad records any more."""
        self.is_on = False

    def partitions_of(self, records: Sequence[Record]) -> set[int]:
        """Return the partitions of records in which bad ones are accepted."""
        return {record.partition for record in records} - self._recovered if self.is_on else set()

    def note_recovered(self, partitions: Collection[int], assigned: Collection[int] = ()) -> None:
        """Accept no bad records in some partitions any more; end once all `assigned` ones have recovered."""
        self._recovered.update(partitions)
        if assigned and self._recovered.issuperset(assigned):
            self.end()
