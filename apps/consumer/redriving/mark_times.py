"""Recognizes marks of letters that their partition has lost, whose offsets others have now.

A partition may lose its log (a replaced disk) or its tail (an unclean leader). It gives the same offsets again then,
and the id of its topic stays. So each mark has a time: when it was written, no record before the end of its offsets was
dated later. The first that is dated later now was written since, in place of a lost one. So were all behind it.

That is as exact as the clocks: a letter whose writer's clock is behind counts as marked. No marked letter ever counts
as replaced, because records that are ahead of the clock raise the time.
"""

import time
from collections import defaultdict
from collections.abc import Collection, Mapping

from apps.chassis.kafka.log_reader import LogReader
from apps.consumer.redriving.marks import LATEST_MS, DatedMark

MARGINS_MS = (0, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
"""By how much a time is raised above a record that is ahead of it, one after the other: each takes a look."""


async def times_of(log: LogReader, ends: Mapping[int, int]) -> dict[int, int]:
    """Return the time (ms) of a mark whose offsets end before one in each partition: now, or later.

    A partition is missing when some of its records are days ahead: its mark gets no time. Raises the errors of
    `LogReader`.
    """
    times = dict.fromkeys(ends, time.time_ns() // 1_000_000)
    for margin in MARGINS_MS:
        later = await log.dated_after(times)
        ahead = {partition: dated + margin for partition, (offset, dated) in later.items() if offset < ends[partition]}
        if not ahead:
            return times
        times = {partition: at for partition, at in (times | ahead).items() if at <= LATEST_MS}
    return {partition: at for partition, at in times.items() if partition not in ahead}


async def replaced_from(log: LogReader, marks: Collection[DatedMark]) -> dict[DatedMark, int]:
    """Return from which offset on the letters of marks were replaced, without marks of which none was.

    Raises the errors of `LogReader`.
    """
    replaced = dict[DatedMark, int]()
    left = defaultdict[int, defaultdict[int, list[DatedMark]]](lambda: defaultdict(list))
    for mark in marks:
        left[mark.partition][mark.time].append(mark)
    while asked := {partition: times.popitem() for partition, times in left.items() if times}:
        later = await log.dated_after({partition: at for partition, (at, _) in asked.items()})
        for partition, (offset, _) in later.items():
            replaced |= {mark: offset for mark in asked[partition][1] if offset < mark.end}
    return replaced
