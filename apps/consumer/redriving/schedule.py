"""Sends dead letters of the handler's errors back by themselves, some time after they were dead-lettered.

This is the delayed retry that others build from a row of retry topics: it blocks no partition, and needs no further
topic. Each record gets as many rounds as there are delays, and is held then.

The instance that has partition 0 of the stream's topic does it: instances that redrive at once fence each other.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from aiokafka import TopicPartition
from prometheus_client import Metric

from apps.chassis.kafka.errors import KAFKA_ERRORS
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.kafka.log_truncation import LastRead
from apps.chassis.observability.logs import one_line
from apps.chassis.observability.metrics import counter, gauge
from apps.consumer.operating.control import Control
from apps.consumer.redriving.letters import READ_BYTES, letter_of
from apps.consumer.redriving.marks import Intervals, Marks, contains, minus, next_outside
from apps.consumer.redriving.redrive import Redriver
from apps.consumer.redriving.refusals import RedriveRefused
from contracts.dead_letter import POISON, history
from contracts.record import Record, size_of

log = logging.getLogger(__name__)

LOOKS_PER_DELAY = 20
"""How often it is looked for due letters within the shortest delay."""
MIN_CHECK_S, MAX_CHECK_S = 0.2, 30.0
"""Bounds of the seconds between two looks."""
AHEAD_S = 60.0
"""Seconds ahead of now up to which the time of a letter is believed; one that is dated later is due at once."""


class SearchLimits(NamedTuple):
    """How many letters, bytes of them and seconds a search may take, about; the next look continues it."""

    letters: int = 1_000
    max_bytes: int = 8 * 1024 * 1024
    seconds: float = 2.0


class Stop(NamedTuple):
    """The first letter of a round in a partition that may have to be sent back, and when that is due: 0 if unknown."""

    offset: int
    due: float = 0.0


class DueLetters:
    """Finds the letters that are due: of the handler's errors, not sent back yet, and not held.

    Letters of one round are due in the order in which they were written. So it remembers one place for each round and
    partition, reads each letter once, and waits at the first that is not due yet. `is_cut_off` is whether the last
    search ran out of time.
    """

    def __init__(
        self,
        reader: LogReader,
        redriver: Redriver,
        group: str,
        delays_s: Sequence[float],
        limits: SearchLimits = SearchLimits(),  # noqa: B008 - it is immutable
    ) -> None:
        self.is_cut_off = False
        self._limits = limits
        self._reader = reader
        self._redriver = redriver
        self._group = group
        self._delays_s = delays_s
        self._topic_id: UUID | None = None
        self._stops: dict[int, list[Stop]] = {}
        self._marked: dict[int, Intervals] = {}
        self._last_read = LastRead(reader)

    @property
    def next_at(self) -> float | None:
        """When the next letter is due (Unix time), None when none is known."""
        return min((stop.due for stops in self._stops.values() for stop in stops if stop.due), default=None)

    async def find(self, marks: Marks) -> list[Record]:
        """Return letters that are due, in the order of their partitions. Raises the errors of `LogReader`.

        They are found again until `marks` has them.
        """
        if marks.topic_id != self._topic_id:
            self._topic_id = marks.topic_id
            self._stops.clear()
        late = asyncio.get_running_loop().time() + self._limits.seconds
        first, end = await self._redriver.letters.offsets()
        lost = await self._last_read.lost(first, end)
        found: list[Record] = []
        for partition, start in first.items():
            if asyncio.get_running_loop().time() >= late:
                break
            marked = marks.of(self._group, partition)
            taken_back = minus(self._marked.get(partition, []), marked)
            self._marked[partition] = marked
            if partition not in self._stops or taken_back or partition in lost:
                self._stops[partition] = [Stop(start)] * len(self._delays_s)
            await self._find_in(partition, (start, end[partition]), marked, late, found)
        self.is_cut_off = asyncio.get_running_loop().time() >= late
        return found

    async def _find_in(
        self, partition: int, bounds: tuple[int, int], marked: Intervals, late: float, found: list[Record]
    ) -> None:
        """Add the due letters of a partition, and move its stops; a stop stays at the first letter that is found."""
        stops, now, (start, end) = self._stops[partition], time.time(), bounds
        reading = {
            number: max(stop.offset, start)
            for number, stop in enumerate(stops)
            if stop.due <= now or contains(marked, stop.offset)
        }
        stopped: dict[int, Stop] = {}
        at = min(reading.values(), default=end)
        while reading and (at := next_outside(marked, at)) < end:
            records, reached = await self._reader.some({partition: (at, end)}, READ_BYTES)
            self._last_read.add(records)
            at = reached[partition]
            candidates = [
                (number, record)
                for record in records
                if (number := self._round_of(record)) in reading
                and record.offset >= reading[number]
                and not contains(marked, record.offset)
            ]
            await self._redriver.letters.read_deletions([letter_of(record) for _, record in candidates], late)
            for number, record in candidates:
                if number not in reading or await self._redriver.letters.is_deleted(letter_of(record)):
                    continue
                due = self._due(record, number, now)
                stopped.setdefault(number, Stop(record.offset, due))
                if due > now:
                    del reading[number]
                else:
                    found.append(record)
            is_full = len(found) >= self._limits.letters or sum(map(size_of, found)) >= self._limits.max_bytes
            if is_full or asyncio.get_running_loop().time() >= late:
                break
        stopped = {number: Stop(max(at, offset)) for number, offset in reading.items()} | stopped
        self._stops[partition] = [stopped.get(number, stop) for number, stop in enumerate(stops)]

    def _round_of(self, record: Record) -> int | None:
        """Return how often a letter's record was sent back, None for a letter that the schedule leaves alone."""
        letter = letter_of(record)
        wanted = letter.verdict == POISON and letter.group == self._group and self._redriver.is_ours(letter)
        return history(letter.headers)[2] if wanted and not self._redriver.letters.is_held(letter) else None

    def _due(self, record: Record, number: int, now: float) -> float:
        dated = record.timestamp / 1_000
        return (dated if dated <= now + AHEAD_S else 0.0) + self._delays_s[number]


def of_schedule(schedule: "Schedule") -> Iterator[Metric]:
    """Return how many letters were sent back by schedule, and when the next is due."""
    yield counter(
        "consumer_records_redriven_by_schedule", "Dead letters that were sent back by REDRIVE_AFTER.", schedule.redriven
    )
    next_at = schedule.next_at
    yield gauge(
        "consumer_next_redrive_timestamp_seconds",
        "When the next dead letter is due to be sent back (Unix time); missing when this instance knows of none.",
        {} if next_at is None else next_at.timestamp(),
    )


class Schedule:
    """Sends due letters back while the stream is `running`, from the instance that has partition 0 of its topic."""

    def __init__(self, redriver: Redriver, due: DueLetters, control: Control, topic: str) -> None:
        self.redriven = 0
        self.error: str | None = None
        self._redriver = redriver
        self._due = due
        self._control = control
        self._first = TopicPartition(topic, 0)

    @property
    def is_ours(self) -> bool:
        """Whether this instance is the one that sends letters back."""
        consumer = self._control.consumer
        return consumer is not None and self._first in consumer.assignment()

    @property
    def next_at(self) -> datetime | None:
        """When the next letter is due, None when this instance knows of none."""
        at = self._due.next_at if self.is_ours else None
        return None if at is None else datetime.fromtimestamp(at, UTC)

    async def watch(self, delays_s: Sequence[float]) -> None:
        """Look for due letters, and send them back, until cancelled."""
        look_s = min(max(min(delays_s) / LOOKS_PER_DELAY, MIN_CHECK_S), MAX_CHECK_S)
        while True:
            if not await self._look():
                await asyncio.sleep(MIN_CHECK_S if self._due.is_cut_off else look_s)

    async def _look(self) -> int:
        """Send back letters that are due; return how many, and note what went wrong."""
        try:
            sent = await self._send_due() if await self._may_send() else 0
        except (*KAFKA_ERRORS, RedriveRefused) as error:
            if self.error != (reason := f"a scheduled redrive failed, and is tried again: {one_line(error)}"):
                log.warning(reason)
            self.error = reason
            return 0
        self.error = None
        return sent

    async def _may_send(self) -> bool:
        return self.is_ours and await self._control.state() == "running"

    async def _send_due(self) -> int:
        """Search without a fence first: most looks find nothing, and a redrive that an operator asks for goes on."""
        if not await self._due.find(await self._redriver.marks()) or not await self._may_send():
            return 0
        sent = await self._redriver.redrive_found(self._due.find)
        self.redriven += sent
        if sent:
            log.info("%d dead letters were sent back to %s by schedule (REDRIVE_AFTER)", sent, self._first.topic)
        return sent
