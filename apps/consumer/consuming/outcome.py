"""The outcome of a batch: in each partition, only what comes before its first unfinished record is finished."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from apps.consumer.consuming.dead_letters import BadRecord
from apps.consumer.consuming.findings import Finding, Partition
from contracts.record import Record


class Outcome(NamedTuple):
    """The finished `records` of a batch: the handled ones are `good`, the dead letters `bad`.

    `redelivered` has the first offset to read again of each partition. `recovered` are partitions that had only good
    records after a start that accepted bad ones. `passed_over` counts the finished records that were sent back for
    another group.
    """

    records: Sequence[Record]
    good: Sequence[Record]
    bad: Sequence[BadRecord] = ()
    redelivered: Mapping[Partition, int] = {}
    recovered: Collection[int] = ()
    passed_over: int = 0

    def redelivers(self, record: Record) -> bool:
        """Return whether a record of the batch will be read again."""
        return record.offset >= self.redelivered.get((record.topic, record.partition), math.inf)


def bad_record(finding: Finding) -> BadRecord:
    """Return the bad record that a finding is about."""
    assert finding.error is not None  # noqa: S101 - of `is_bad`
    return BadRecord(finding.record, finding.error, finding.tries, finding.state == "poison", finding.position)


def finished_part(records: Sequence[Record], bad: Sequence[BadRecord], unfinished: Collection[int]) -> Outcome:
    """Return the outcome of a batch.

    `unfinished` are the `id`s of records, not their places: in memory all offsets are 0.
    """
    if not bad and not unfinished:
        return Outcome(records, records)
    undecided, firsts = set(unfinished), dict[Partition, int]()
    for record in records if undecided else ():
        if id(record) in undecided:
            partition = record.topic, record.partition
            firsts[partition] = min(record.offset, firsts.get(partition, record.offset))
    whole = Outcome(records, records, redelivered=firsts)
    finished = [record for record in records if not whole.redelivers(record)] if firsts else records
    letters = [one for one in bad if not whole.redelivers(one.record)]
    are_bad = {id(one.record) for one in letters}
    return Outcome(
        finished,
        [record for record in finished if id(record) not in are_bad],
        sorted(letters, key=lambda one: (one.record.partition, one.record.offset)),
        firsts,
    )
