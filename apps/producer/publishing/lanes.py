"""Send the records of one partition in order, in batches of all that wait."""

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

MAX_BATCH_BYTES = 512 * 1024
"""Most bytes of a batch: larger ones gain no throughput and delay other records."""
BATCH_OVERHEAD_BYTES = 61
"""Bytes of a batch without records."""
RECORD_OVERHEAD_BYTES = 32
"""Most bytes that the format adds to key and value (five varints and the attributes)."""
HEADER_OVERHEAD_BYTES = 10
"""Most bytes that the format adds to name and value of a header (two varints)."""

IN_FLIGHT_BYTES = 32 * 1024 * 1024
"""Most bytes of keys and values of a stream that wait for their acknowledgement."""

OUT_OF_REACH = "Kafka is out of reach"
ENDING = "the service is shutting down"


class Limits(msgspec.Struct, kw_only=True):
    """Timeouts in seconds, and limits in bytes.

    A record that is not acknowledged after `ack_timeout_s` is given up. A batch that cannot be handed to the client
    within `hand_over_s` is tried again, perhaps with a new broker. Records are refused after `connect_s` without a
    connection, and while a quota delays them for more than `throttling_s`. At shutdown, acknowledgements are awaited
    for `last_chance_s`.

    Keys and values of all calls together may have `in_flight_bytes`: a stream that hangs leaves room for others, as
    calls take six times as much memory and share 256 MiB. Fewer than `small_bytes` wait while a batch is in
    flight to their partition, and are then sent together (Nagle, RFC 896). A batch of one record costs the client and
    the broker as much as one of a hundred.
    """

    ack_timeout_s: float = 8.0
    hand_over_s: float = 2.0
    connect_s: float = 1.5
    throttling_s: float = 2.0
    last_chance_s: float = 1.0
    in_flight_bytes: int = IN_FLIGHT_BYTES
    small_bytes: int = 8 * 1024


@dataclass
class Route:
    """What all lanes of a topic share. `acknowledged_after` is called with the seconds that each batch took."""

    topic: str
    connection: Connection
    cluster: Cluster
    retry_backoff_s: float
    acknowledged_after: Callable[[float], None] = lambda _: None
    send: Send = accelerated
    limits: Limits = field(default_factory=Limits)
    refusals: Refusals = field(default_factory=Refusals)

    @property
    def max_batch_bytes(self) -> int:
        """Most bytes of a batch: `MAX_BATCH_BYTES`, or less if the topic accepts less."""
        return min(MAX_BATCH_BYTES, self.cluster.max_message_bytes(self.topic))

    def throttled_for(self) -> float:
        """Return the seconds for which a quota of Kafka still delays records; 0 without a delay."""
        return self.connection.journal.throttled_for()


class Batch(msgspec.Struct, eq=False):
    """Records that are sent together: parts of slices, in the order of the lane. `timestamp` is ms since 1970 UTC."""

    broker: KafkaBroker
    timestamp: int
    made_at: float
    headers: TraceHeaders | None = None
    parts: list[tuple[Slice, int, int]] = []
    records: list[tuple[bytes, bytes]] = []

    def settle(self, *, offset: int | None = None, error: str | None = None, outcome: Outcome | None = None) -> None:
        """Settle the part of each slice with the result of the batch; `offset` is that of the first record."""
        at = 0
        for piece, start, stop in self.parts:
            first = None if offset is None else offset + at
            at += stop - start
            piece.settle(Span(start, stop, first, self.timestamp, error, outcome))


class Lane:
    """Sends the waiting records of one partition in order, while earlier batches are in flight.

    `stalled` is whether records were given up and none acknowledged since. While the partition is also known to be
    unusable, records are refused at once: those for other partitions would wait with them.
    """

    def __init__(self, route: Route, partition: int) -> None:
        self.stalled = False
        self._route = route
        self._partition = partition
        self._waiting: deque[Slice] = deque()
        self._size_waiting = 0  # bytes of the calls whose slices wait
        self._filled = asyncio.Event()
        self._broker: KafkaBroker | None = None
        self._on_the_way: set[Acknowledgement] = set()

    def add(self, piece: Slice) -> None:
        """Queue records behind those that already wait."""
        unusable = self._route.cluster.unusable.get(self._route.topic, {})
        if self.stalled and self._partition in unusable:
            piece.refuse_rest(f"partition {self._partition} has {unusable[self._partition]}")
            return
        self._waiting.append(piece)
        self._size_waiting += piece.size
        if not self._small_behind_others():
            self._filled.set()

    async def run(self) -> None:
        """Send queued records, until cancelled."""
        while True:
            await self._filled.wait()
            if self._small_behind_others():
                self._filled.clear()  # the acknowledgement sets it again
            elif throttled_for := self._route.throttled_for():  # records that stay here are known to be unwritten
                await asyncio.sleep(min(throttled_for, self._route.limits.throttling_s))
            elif broker := await self._connected():
                if self._partition >= self._route.cluster.partitions[self._route.topic]:  # the topic was recreated
                    self._refuse(f"topic {self._route.topic} has no partition {self._partition}")
                batch = self._take(broker)
                if batch.records:
                    await self._hand_over(batch)

    def _small_behind_others(self) -> bool:
        in_use = self._broker is self._route.connection.current
        return bool(self._on_the_way) and in_use and self._size_waiting < self._route.limits.small_bytes

    async def _connected(self) -> KafkaBroker | None:
        """Return the broker to send to; without one, refuse all waiting records."""
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
            self._put_back(batch)  # the client has not sent the batch before it; there may be a new broker by now
        except Exception as error:  # noqa: BLE001 - the client did not accept the batch, so nothing was written
            self._put_back(batch)
            route.connection.replace(batch.broker, f"cannot send to {route.topic}: {one_line(error)}")
        else:
            if acknowledgement is None:  # `TestKafkaBroker`: the subscribers have the batch, without offsets
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
            if written.timestamp_type == 1 and written.timestamp:  # the broker sets the timestamps of this topic
                batch.timestamp = written.timestamp
            self._route.acknowledged_after(time.monotonic() - batch.made_at)
            self._route.refusals.clear(self._partition)
            self.stalled = False
            batch.settle(offset=written.offset if written.offset >= 0 else None)

    def _failed(self, batch: Batch, error: BaseException) -> None:
        """Settle a failed batch, and replace the producer: Kafka would refuse the gap in its sequence numbers."""
        route, refused, why = self._route, is_refusal(error), one_line(error)
        # aiokafka waits for its backoff before a retry, so an earlier failure is that of the first attempt
        first_attempt = time.monotonic() - batch.made_at < route.retry_backoff_s
        if said := route.connection.journal.take_message(route.topic, self._partition):
            why = f"{why}: {said}"
        unwritten = isinstance(error, Throttled) or (first_attempt and refused)
        batch.settle(error=why, outcome="not_written" if unwritten else "unknown")
        if refused:
            route.refusals.add(self._partition, error, why)
        reason = f"{route.topic} refused a batch: {why if said else without_values(error)}"
        route.connection.replace(batch.broker, reason)

    def _take(self, broker: KafkaBroker) -> Batch:
        """Take as many waiting records as fit into one batch; records of another trace need another batch."""
        batch = Batch(broker, time.time_ns() // 1_000_000, time.monotonic())
        room = self._route.max_batch_bytes - BATCH_OVERHEAD_BYTES
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
            if size <= room:  # all fit: no loop over the records
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
        """Settle all waiting records as not written."""
        while self._waiting:
            self._leave().refuse_rest(error)
        self._filled.clear()

    def _leave(self) -> Slice:
        piece = self._waiting.popleft()
        self._size_waiting -= piece.size
        return piece


def size_of_headers(headers: TraceHeaders | None) -> int:
    """Return the most bytes that headers add to each record, with their lengths."""
    return sum(len(name) + len(value) + HEADER_OVERHEAD_BYTES for name, value in headers.items()) if headers else 0
