"""The way to one partition: a queue of records that are sent in order, as many in one batch as are waiting."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import msgspec
from faststream.kafka import KafkaBroker

from apps.chassis.internals.client_batch import Acknowledgement
from apps.chassis.internals.kafka_client import Throttled
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.connection import Connection
from apps.chassis.observability.logs import one_line, without_values
from apps.chassis.observability.traces import TraceHeaders
from apps.producer.publishing.deliveries import Slice, Span
from apps.producer.publishing.receipts import Outcome
from apps.producer.publishing.refusals import Refusals, is_refusal
from apps.producer.publishing.transport import Send, accelerated

LARGEST_BATCH_BYTES = 512 * 1024
"""Bytes of a batch; larger ones gain nothing and make others wait."""
BATCH_OVERHEAD_BYTES = 61
RECORD_OVERHEAD_BYTES = 32
"""Bytes that the format adds at most to key and value (five varints and the attributes)."""
HEADER_OVERHEAD_BYTES = 10
"""Bytes that the format adds at most to name and value of a header (two varints)."""

OUT_OF_REACH = "Kafka is out of reach"
ENDING = "the service is shutting down"


class Limits(msgspec.Struct, kw_only=True):
    """How long records may take, and how many bytes may be in flight.

    `ack_timeout_s`: until a record that is not acknowledged is given up. `hand_over_s`: until a lane whose batch waits
    for the one before it chooses a broker again. `connect_s`: until records without a connection are refused.
    `throttling_s`: the delay of a quota above which records are refused. `last_chance_s`: for acknowledgements when the
    service ends. `in_flight_bytes`: keys and values of all calls together. `small_bytes`: records of fewer wait while a
    batch is on its way to their partition and then travel together, as Nagle has it (RFC 896): a batch of one record
    costs the client and the broker as much as one of a hundred.
    """

    ack_timeout_s: float = 8.0
    hand_over_s: float = 2.0
    connect_s: float = 1.5
    throttling_s: float = 2.0
    last_chance_s: float = 1.0
    in_flight_bytes: int = 48 * 1024 * 1024
    small_bytes: int = 8 * 1024


@dataclass
class Route:
    """How records reach one topic; all its lanes share it. `acknowledged_after` gets the seconds of each batch."""

    topic: str
    connection: Connection
    cluster: Cluster
    retry_backoff_s: float
    acknowledged_after: Callable[[float], None] = lambda _: None
    send: Send = accelerated
    limits: Limits = field(default_factory=Limits)
    refusals: Refusals = field(default_factory=Refusals)

    @property
    def largest_batch(self) -> int:
        """Bytes of a batch: what gains throughput, or less where the topic takes less."""
        return min(LARGEST_BATCH_BYTES, self.cluster.max_message_bytes(self.topic))

    def throttled_for(self) -> float:
        """Return the seconds for which a quota of Kafka still delays records."""
        return self.connection.journal.throttled_for()


class Batch(msgspec.Struct, eq=False):
    """Records on their way: parts of slices, in the order of the lane."""

    broker: KafkaBroker
    timestamp: int
    made_at: float
    headers: TraceHeaders | None = None
    parts: list[tuple[Slice, int, int]] = []
    records: list[tuple[bytes, bytes]] = []

    def settle(self, *, offset: int | None = None, error: str | None = None, outcome: Outcome | None = None) -> None:
        """Settle every slice's part of the batch."""
        at = 0
        for piece, start, stop in self.parts:
            first = None if offset is None else offset + at
            at += stop - start
            piece.settle(Span(start, stop, first, self.timestamp, error, outcome))


class Lane:
    """Sends what waits for one partition, in order, while earlier batches are on their way."""

    def __init__(self, route: Route, partition: int) -> None:
        self._route = route
        self._partition = partition
        self._waiting: deque[Slice] = deque()
        self._size_waiting = 0  # of the calls whose slices wait
        self._filled = asyncio.Event()
        self._broker: KafkaBroker | None = None
        self._on_the_way: set[Acknowledgement] = set()

    def add(self, piece: Slice) -> None:
        """Queue records behind those that wait already."""
        self._waiting.append(piece)
        self._size_waiting += piece.size
        if not self._small_behind_others():
            self._filled.set()

    async def run(self) -> None:
        """Send what is queued, until cancelled."""
        while True:
            await self._filled.wait()
            if self._small_behind_others():
                self._filled.clear()  # the acknowledgement sets it again
            elif throttled_for := self._route.throttled_for():  # what the client never got is known to be unwritten
                await asyncio.sleep(min(throttled_for, self._route.limits.throttling_s))
            elif broker := await self._connected():
                batch = self._take(broker)
                if batch.records:
                    await self._hand_over(batch)

    def _small_behind_others(self) -> bool:
        in_use = self._broker is self._route.connection.current
        return bool(self._on_the_way) and in_use and self._size_waiting < self._route.limits.small_bytes

    async def _connected(self) -> KafkaBroker | None:
        """Return the broker to send to; without one, refuse all that waits."""
        connection, limits = self._route.connection, self._route.limits
        try:
            broker = await connection.broker(limits.connect_s)
        except TimeoutError:
            self._refuse(connection.trouble(OUT_OF_REACH) or OUT_OF_REACH)
            return None
        if broker is not self._broker:
            if self._on_the_way:  # a new producer must not overtake what the old one still sends
                await asyncio.wait(self._on_the_way, timeout=limits.ack_timeout_s)
                self._on_the_way.clear()
            self._broker = broker
        return broker

    async def _hand_over(self, batch: Batch) -> None:
        route = self._route
        try:
            async with asyncio.timeout(route.limits.hand_over_s):
                acknowledgement = await route.send(
                    batch.broker, self._partition, batch.timestamp, batch.records, batch.headers
                )
        except TimeoutError:
            self._put_back(batch)  # the batch before it is not on its way yet; there may be another broker by now
        except Exception as error:  # noqa: BLE001 - whatever kept it from the client: nothing was written, it waits again
            self._put_back(batch)
            route.connection.replace(batch.broker, f"cannot send to {route.topic}: {one_line(error)}")
        else:
            if acknowledgement is None:  # in memory: its subscribers have the batch, at no offset
                batch.settle()
            else:
                self._on_the_way.add(acknowledgement)
                acknowledgement.add_done_callback(partial(self._acknowledged, batch))

    def _acknowledged(self, batch: Batch, acknowledgement: Acknowledgement) -> None:
        self._on_the_way.discard(acknowledgement)
        if self._waiting:
            self._filled.set()
        if acknowledgement.cancelled():
            batch.settle(error=ENDING, outcome="unknown")
        elif error := acknowledgement.exception():
            self._failed(batch, error)
        else:
            written = acknowledgement.result()
            if written.timestamp_type == 1 and written.timestamp:  # the topic keeps the broker's time, not ours
                batch.timestamp = written.timestamp
            self._route.acknowledged_after(time.monotonic() - batch.made_at)
            self._route.refusals.clear(self._partition)
            batch.settle(offset=written.offset if written.offset >= 0 else None)

    def _failed(self, batch: Batch, error: BaseException) -> None:
        """Settle a failed batch, and replace the producer: its sequence numbers have a gap, it would be refused."""
        route, refused, why = self._route, is_refusal(error), one_line(error)
        # aiokafka retries no sooner than its backoff, so what fails before has been tried once
        first_attempt = time.monotonic() - batch.made_at < route.retry_backoff_s
        if said := route.connection.journal.take_message(route.topic, self._partition):
            why = f"{why}: {said}"
        unwritten = isinstance(error, Throttled) or (first_attempt and refused)
        batch.settle(error=why, outcome="not_written" if unwritten else "unknown")
        if refused:
            route.refusals.add(self._partition, why)
        reason = f"{route.topic} refused a batch: {why if said else without_values(error)}"
        route.connection.replace(batch.broker, reason)

    def _take(self, broker: KafkaBroker) -> Batch:
        """Take as many records from the front as fit into one batch; those of another trace go into another."""
        batch = Batch(broker, time.time_ns() // 1_000_000, time.monotonic())
        room = self._route.largest_batch - BATCH_OVERHEAD_BYTES
        while self._waiting:
            piece = self._waiting[0]
            if piece.delivery is None:  # given up
                self._leave()
                continue
            headers = piece.delivery.headers
            if batch.records and headers != batch.headers:  # a batch has one set of headers for all its records
                return batch
            batch.headers, overhead = headers, RECORD_OVERHEAD_BYTES + size_of_headers(headers)
            if piece.failed:
                piece.refuse_rest("an earlier record of this call was not acknowledged")
            start = stop = piece.handed
            records = list(zip(piece.keys[start:], piece.values[start:], strict=True))
            size = sum(map(len, chain.from_iterable(records))) + overhead * len(records)
            if size <= room:  # all of it, without a step in Python for each
                batch.records += records
                room -= size
                stop += len(records)
                records = []
            for key, value in records:
                room -= len(key) + len(value) + overhead
                if room < 0 and batch.records:
                    break
                batch.records.append((key, value))
                stop += 1
            if stop > start:
                batch.parts.append((piece, start, stop))
                piece.handed, piece.broker = stop, broker
            if stop < len(piece.rows):
                return batch
            self._leave()
        self._filled.clear()
        return batch

    def _put_back(self, batch: Batch) -> None:
        for piece, start, _ in reversed(batch.parts):
            if piece.delivery is not None and not piece.delivery.given_up:
                piece.handed = start
                if not self._waiting or self._waiting[0] is not piece:
                    self._waiting.appendleft(piece)
                    self._size_waiting += piece.size
                self._filled.set()

    def _refuse(self, error: str) -> None:
        """Settle all that waits as not written."""
        while self._waiting:
            self._leave().refuse_rest(error)
        self._filled.clear()

    def _leave(self) -> Slice:
        piece = self._waiting.popleft()
        self._size_waiting -= piece.size
        return piece


def size_of_headers(headers: TraceHeaders | None) -> int:
    """Return the bytes that headers add to each record at most, with their lengths."""
    return sum(len(name) + len(value) + HEADER_OVERHEAD_BYTES for name, value in headers.items()) if headers else 0
