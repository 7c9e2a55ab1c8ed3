"""Notices that a partition has lost records that were read: its log (a replaced disk), or its tail (an unclean leader).

It gives their offsets to new records then, and soon is as long as before. So what is remembered by offset is only right
as long as the last record that was read is still there.
"""

from collections.abc import Iterable, Mapping

from apps.chassis.kafka.log_reader import LogReader
from contracts.record import Record


class LastRead:
    """The last record that was read of each partition of a topic, by offset."""

    def __init__(self, log: LogReader) -> None:
        self._log = log
        self._records: dict[int, tuple[int, int]] = {}  # offset and time

    def add(self, records: Iterable[Record]) -> None:
        """Remember which of some records is the last one."""
        for record in records:
            if record.offset >= self.end(record.partition):
                self._records[record.partition] = record.offset, record.timestamp

    def end(self, partition: int) -> int:
        """Return the offset behind the last record that was read of a partition, 0 when none was.

        What is there without a record, like the end of a transaction, may be lost without being noticed.
        """
        return self._records[partition][0] + 1 if partition in self._records else 0

    async def lost(self, first: Mapping[int, int], end: Mapping[int, int]) -> set[int]:
        """Return the partitions that have lost their last record, and forget it. Raises the errors of `LogReader`.

        `first` and `end` are the bounds of each partition. A record that Kafka has deleted is not lost.
        """
        known = dict(self._records)
        lost = {partition for partition, (offset, _) in known.items() if offset >= end.get(partition, 0)}
        places = {
            partition: (offset, offset + 1)
            for partition, (offset, _) in known.items()
            if partition not in lost and offset >= first[partition]
        }
        there = await self._log.timestamps(places) if places else {}
        lost |= {partition for partition, timestamp in there.items() if timestamp != known[partition][1]}
        for partition in lost:
            self._records.pop(partition, None)
        return lost
