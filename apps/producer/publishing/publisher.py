"""Writes records to the topic: keyed, in batches, each with what became of it.

Every partition has a lane: a queue of records that are sent in order, as many in one batch as are waiting. A call's
records are spread over the lanes by key and its `Delivery` is told what becomes of them.
"""

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Literal, NamedTuple

import msgspec
from aiokafka import errors
from faststream.kafka import KafkaBroker

from apps.chassis.background import Background
from apps.chassis.internals.kafka_client import NEWER_ERRORS, Throttled
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.connection import Connection
from apps.chassis.observability.logs import one_line, without_values
from apps.chassis.observability.traces import TraceHeaders, Traces
from apps.producer.publishing.transport import Acknowledgement, Send, send_client_batch
from contracts.partitioning import partitions_of

DEADLINE = 8.0
"""Seconds after which a record that is not acknowledged is given up."""
HAND_OVER = 2.0
"""Seconds that a batch waits for the one before it to leave, before its lane chooses a broker again."""
PATIENCE = 1.5
"""Seconds that records wait for a connection before they are refused."""
LARGEST_BATCH = 512 * 1024
"""Bytes of a batch; larger ones gain nothing and make others wait."""
SMALL = 8 * 1024
"""Bytes of calls below which records wait while a batch is on its way to their partition, and then travel together.

As Nagle has it (RFC 896): a batch of one record costs the client and the broker as much as one of a hundred.
"""
BATCH_OVERHEAD = 61
RECORD_OVERHEAD = 32
"""Bytes that the format adds at most to key and value (five varints and the attributes)."""
HEADER_OVERHEAD = 10
"""Bytes that the format adds at most to name and value of a header (two varints)."""
MOST_IN_FLIGHT = 48 * 1024 * 1024
"""Bytes of keys and values that may wait for their acknowledgement, of all calls together."""

REFUSALS = (
    errors.ClusterAuthorizationFailedError,
    errors.InvalidMessageError,
    errors.InvalidTimestampError,
    errors.InvalidTopicError,
    errors.MessageSizeTooLargeError,
    errors.OutOfOrderSequenceNumber,
    errors.PolicyViolationError,
    errors.RecordListTooLargeError,
    errors.TopicAuthorizationFailedError,
    errors.UnknownProducerId,
    errors.UnsupportedForMessageFormatError,
)
"""Answers of a broker that has not written the batch."""

LAST_CHANCE = 1.0
"""Seconds for records to be acknowledged when the service ends."""

OUT_OF_REACH = "Kafka is out of reach"
ENDING = "the service is shutting down"

LONGEST_THROTTLING_S = 2.0
"""Seconds of a quota's delay up to which records are accepted; with a longer one they are refused."""
REFUSED_RECENTLY_S = 30.0
"""Seconds for which a refusal affects health, unless records are accepted again before."""
INVALID_RECORD = NEWER_ERRORS[87][0]
"""The name of an error that aiokafka does not know: the topic's settings do not allow a record."""

Outcome = Literal["not_written", "unknown"]


class Busy(Exception):
    """Too many records wait for their acknowledgement; try again after `retry_after` s."""

    def __init__(self, message: str, retry_after: int = 2) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OutOfReach(Exception):
    """There is no connection to Kafka now; the message says why."""


class Receipt(msgspec.Struct, omit_defaults=True):
    """What became of one record: where it stands in the topic, or why it is not known to.

    A record that was acknowledged has `partition`, `offset` and `timestamp` (milliseconds since 1970 UTC); `offset` is
    missing in memory (`TestKafkaBroker`), and in the rare case that the broker acknowledged a retry whose offset it had
    forgotten. Any other has `error`,
    and its `outcome`: `not_written` (never handed to the client, or refused at its first attempt) or `unknown` (it may
    have been written, or may still be).
    """

    id: str
    partition: int | None = None
    offset: int | None = None
    timestamp: int | None = None
    error: str | None = None
    outcome: Outcome | None = None


class Span(NamedTuple):
    """Consecutive records of a slice that met the same fate."""

    start: int
    stop: int
    offset: int | None = None
    timestamp: int | None = None
    error: str | None = None
    outcome: Outcome | None = None


class Slice:
    """The records of one call that belong to one partition, in their order.

    `delivery` is None when all of them are settled: the two hold each other, and what does so is freed by a collection
    of garbage alone, in which every caller waits for some 20 ms. `failed` is whether a record was not acknowledged:
    those behind it would come before it if it were sent again.
    """

    __slots__ = (
        "broker",
        "delivery",
        "failed",
        "handed",
        "keys",
        "left",
        "partition",
        "rows",
        "settled",
        "size",
        "spans",
        "values",
    )

    def __init__(
        self, delivery: "Delivery", partition: int, rows: Sequence[int], keys: Sequence[bytes], values: Sequence[bytes]
    ) -> None:
        self.broker: KafkaBroker | None = None
        self.delivery: Delivery | None = delivery
        self.size = delivery.size
        self.partition = partition
        self.rows = rows
        self.keys = keys
        self.values = values
        self.handed = 0
        self.settled = 0
        self.left = len(rows)
        self.spans: list[Span] = []
        self.failed = False

    def settle(self, span: Span) -> None:
        """Note the fate of some records; what is settled already (given up at the deadline) stays so."""
        delivery = self.delivery
        if delivery is not None and not delivery.given_up:
            self.spans.append(span)
            self.failed |= span.error is not None
            self.settled = max(self.settled, span.stop)
            self.left -= span.stop - span.start
            if not self.left:
                self.delivery, self.keys, self.values = None, [], []
            delivery.count(span)

    def refuse_rest(self, error: str) -> None:
        """Settle what was not handed to the client yet."""
        if self.handed < len(self.rows):
            self.settle(Span(self.handed, len(self.rows), error=error, outcome="not_written"))
            self.handed = len(self.rows)


class Delivery:
    """What becomes of the records of one call, in the order given."""

    def __init__(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        partitions: Sequence[int],
        headers: TraceHeaders | None = None,
    ) -> None:
        self.headers = headers
        self.size = sum(map(len, keys)) + sum(map(len, values))
        self.confirmed = 0
        self.failed: dict[Outcome, int] = {"not_written": 0, "unknown": 0}
        self.unsettled = len(keys)
        self.given_up = False
        if len(set(partitions)) == 1:  # as a record alone: half of what making this costs
            self.slices = [Slice(self, partitions[0], range(len(keys)), keys, values)]
        else:
            by_partition: defaultdict[int, list[int]] = defaultdict(list)
            for row, partition in enumerate(partitions):
                by_partition[partition].append(row)
            self.slices = [
                Slice(self, partition, rows, [keys[row] for row in rows], [values[row] for row in rows])
                for partition, rows in by_partition.items()
            ]
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not keys:
            self._done.set_result(None)

    @property
    def complete(self) -> bool:
        """Whether every record was acknowledged."""
        return self.confirmed == sum(len(piece.rows) for piece in self.slices)

    def count(self, span: Span) -> None:
        """Count settled records, and end the wait with the last of them."""
        self.unsettled -= span.stop - span.start
        if span.outcome is None:
            self.confirmed += span.stop - span.start
        else:
            self.failed[span.outcome] += span.stop - span.start
        if not self.unsettled:
            self._end_wait()

    async def wait(self, seconds: float) -> bool:
        """Wait until every record is settled; return False when that takes longer than `seconds`."""
        too_late = self._done.get_loop().call_later(seconds, self._end_wait)  # `asyncio.wait` takes four times as long
        try:
            await self._done
        finally:
            too_late.cancel()
        return not self.unsettled

    def _end_wait(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def give_up(self, error: str) -> set[KafkaBroker]:
        """Settle what is not settled; return the brokers to which some of it had been handed."""
        stuck: set[KafkaBroker] = set()
        for piece in self.slices:
            if piece.settled < piece.handed:
                piece.settle(Span(piece.settled, piece.handed, error=error, outcome="unknown"))
                if piece.broker is not None:
                    stuck.add(piece.broker)
            piece.refuse_rest(error)
        self.given_up = True
        return stuck

    def receipts(self, ids: Sequence[str]) -> list[Receipt]:
        """Return a receipt for every record, in the order given."""
        receipts = [Receipt(record_id) for record_id in ids]
        for piece in self.slices:
            for start, stop, offset, timestamp, error, outcome in piece.spans:
                for at in range(start, stop):
                    receipt = receipts[piece.rows[at]]
                    receipt.error, receipt.outcome = error, outcome
                    if error is None:
                        receipt.partition, receipt.timestamp = piece.partition, timestamp
                        receipt.offset = None if offset is None else offset + at - start
        return receipts


class Batch:
    """Records on their way: parts of slices, in the order of the lane."""

    __slots__ = ("broker", "headers", "made_at", "parts", "records", "timestamp")

    def __init__(self, broker: KafkaBroker) -> None:
        self.broker = broker
        self.headers: TraceHeaders | None = None
        self.parts: list[tuple[Slice, int, int]] = []
        self.records: list[tuple[bytes, bytes]] = []
        self.timestamp = time.time_ns() // 1_000_000
        self.made_at = time.monotonic()

    def settle(self, *, offset: int | None = None, error: str | None = None, outcome: Outcome | None = None) -> None:
        """Tell every slice what became of its part."""
        at = 0
        for piece, start, stop in self.parts:
            first = None if offset is None else offset + at
            at += stop - start
            piece.settle(Span(start, stop, first, self.timestamp, error, outcome))


class Lane:
    """The way to one partition: sends what waits there, in order, while earlier batches are on their way."""

    def __init__(self, publisher: "Publisher", partition: int) -> None:
        self._publisher = publisher
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
            elif self._publisher.throttled_for():
                await self._wait_for_quota()
            elif broker := await self._connected():
                batch = self._take(broker)
                if batch.records:
                    await self._hand_over(batch)

    def _small_behind_others(self) -> bool:
        in_use = self._broker is self._publisher.connection.current
        return bool(self._on_the_way) and in_use and self._size_waiting < SMALL

    async def _wait_for_quota(self) -> None:
        """Hold records back from the client while a quota delays it: what it never got is known to be unwritten."""
        await asyncio.sleep(min(self._publisher.throttled_for(), LONGEST_THROTTLING_S))

    async def _connected(self) -> KafkaBroker | None:
        """Return the broker to send to; without one, refuse all that waits."""
        connection = self._publisher.connection
        try:
            broker = await connection.broker(PATIENCE)
        except TimeoutError:
            self._refuse(connection.trouble(OUT_OF_REACH) or OUT_OF_REACH)
            return None
        if broker is not self._broker:
            if self._on_the_way:  # a new producer must not overtake what the old one still sends
                await asyncio.wait(self._on_the_way, timeout=DEADLINE)
                self._on_the_way.clear()
            self._broker = broker
        return broker

    async def _hand_over(self, batch: Batch) -> None:
        topic = self._publisher.topic
        try:
            async with asyncio.timeout(HAND_OVER):
                acknowledgement = await self._publisher.send(
                    batch.broker, self._partition, batch.timestamp, batch.records, batch.headers
                )
        except TimeoutError:
            self._put_back(batch)  # the batch before it is not on its way yet; there may be another broker by now
        except Exception as error:  # noqa: BLE001 - whatever kept it from the client: nothing was written, it waits again
            self._put_back(batch)
            self._publisher.connection.replace(batch.broker, f"cannot send to {topic}: {one_line(error)}")
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
            # aiokafka tries again no sooner than its backoff, so what fails before has been tried once
            first_attempt = time.monotonic() - batch.made_at < self._publisher.retry_backoff
            refused = is_refusal(error)
            why = one_line(error)
            if said := self._publisher.connection.journal.take_message(self._publisher.topic, self._partition):
                why = f"{why}: {said}"
            unwritten = isinstance(error, Throttled) or (first_attempt and refused)
            batch.settle(error=why, outcome="not_written" if unwritten else "unknown")
            if refused:
                self._publisher.note_refusal(self._partition, why)
            # its sequence numbers have a gap now: whatever follows to this partition would be refused
            reason = f"{self._publisher.topic} refused a batch: {why if said else without_values(error)}"
            self._publisher.connection.replace(batch.broker, reason)
        else:
            written = acknowledgement.result()
            if written.timestamp_type == 1 and written.timestamp:  # the topic keeps the broker's time, not ours
                batch.timestamp = written.timestamp
            self._publisher.acknowledged_after(time.monotonic() - batch.made_at)
            self._publisher.note_acknowledgement(self._partition)
            batch.settle(offset=written.offset if written.offset >= 0 else None)

    def _take(self, broker: KafkaBroker) -> Batch:
        """Take as many records from the front as fit into one batch; those of another trace go into another."""
        batch, room = Batch(broker), self._publisher.largest_batch - BATCH_OVERHEAD
        while self._waiting:
            piece = self._waiting[0]
            if piece.delivery is None:  # given up
                self._leave()
                continue
            headers = piece.delivery.headers
            if batch.records and headers != batch.headers:  # a batch has one set of headers for all its records
                return batch
            batch.headers, overhead = headers, RECORD_OVERHEAD + _size_of(headers)
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


def is_refusal(error: BaseException) -> bool:
    """Return whether a broker answered that it has not written a batch."""
    return isinstance(error, REFUSALS) or type(error).__name__ == INVALID_RECORD


def _size_of(headers: TraceHeaders | None) -> int:
    """Return the bytes that headers add to each record at most, with their lengths."""
    return sum(len(name) + len(value) + HEADER_OVERHEAD for name, value in headers.items()) if headers else 0


class Publisher:
    """Publishes to one topic, as many partitions as it has now.

    `send` hands a batch to the client. `acknowledged_after` is told the seconds that each acknowledged batch took, and
    `outcomes` counts the records of the calls that are done by what became of them.
    """

    def __init__(  # noqa: PLR0913 - what it publishes with
        self,
        topic: str,
        connection: Connection,
        cluster: Cluster,
        background: Background,
        retry_backoff: float,
        *,
        acknowledged_after: Callable[[float], None] = lambda _: None,
        traces: Traces | None = None,
        send: Send = send_client_batch,
    ) -> None:
        self.topic = topic
        self.send = send
        self.connection = connection
        self.retry_backoff = retry_backoff
        self.acknowledged_after = acknowledged_after
        self.in_flight = 0
        self.outcomes = {"delivered": 0, "not_written": 0, "unknown": 0}
        self._open: set[Delivery] = set()
        self.ending = asyncio.Event()
        self._ended = False
        self._traces = traces or Traces()
        self._cluster = cluster
        self._background = background
        self._lanes: dict[int, Lane] = {}
        self._in_turn = asyncio.Lock()
        self._callers_waiting = 0
        self._refusals: dict[int, tuple[str, float]] = {}

    @property
    def largest_batch(self) -> int:
        """Bytes of a batch: what gains throughput, or less where the topic takes less."""
        return min(LARGEST_BATCH, self._cluster.max_message_bytes(self.topic))

    @property
    def largest_record(self) -> int:
        """Bytes of key and value together that one record may have."""
        return self.largest_batch - BATCH_OVERHEAD - RECORD_OVERHEAD - self._traces.header_bytes

    @property
    def records_in_flight(self) -> int:
        """Records that wait for their acknowledgement."""
        return sum(delivery.unsettled for delivery in self._open)

    def throttled_for(self) -> float:
        """Return the seconds for which a quota of Kafka still delays records."""
        return self.connection.journal.throttled_for()

    def note_refusal(self, partition: int, why: str) -> None:
        """Record that a broker refused a batch of a partition, for `recent_refusal`."""
        self._refusals[partition] = why, time.monotonic()

    def note_acknowledgement(self, partition: int) -> None:
        """Record that a partition accepts records."""
        self._refusals.pop(partition, None)

    def recent_refusal(self) -> str | None:
        """Return why Kafka refused the last records of a partition, within 30 s; None when it accepted them."""
        late = time.monotonic() - REFUSED_RECENTLY_S
        self._refusals = {partition: one for partition, one in self._refusals.items() if one[1] > late}
        if not self._refusals:
            return None
        why, _ = max(self._refusals.values(), key=lambda one: one[1])
        return f"the last records were refused by {self.topic}: {why}"

    async def publish(self, keys: Sequence[bytes], values: Sequence[bytes]) -> Delivery:
        """Write records, and return the result of each: within 10 s.

        `keys[i]` belongs to `values[i]`; each record must fit `largest_record`. Calls that are started one after the
        other keep their order. With nothing sent, raises `Busy` when 48 MiB wait for their acknowledgement, or when a
        quota delays records for more than 2 s, and `OutOfReach` when there is no connection within 1.5 s.
        """
        try:
            return await self._publish(keys, values)
        except (Busy, OutOfReach):
            self.outcomes["not_written"] += len(keys)
            raise

    async def _publish(self, keys: Sequence[bytes], values: Sequence[bytes]) -> Delivery:
        if self.connection.current is None or self._callers_waiting:
            await self._wait_for_connection()
        if self._ended:
            raise OutOfReach(ENDING)
        partitions = partitions_of(keys, self._cluster.partitions[self.topic])
        if (seconds := self.throttled_for()) > LONGEST_THROTTLING_S:
            raise Busy(f"a quota of Kafka delays this producer for {seconds:.1f} s more", math.ceil(seconds))
        delivery = Delivery(keys, values, partitions, self._traces.headers())
        if self.in_flight + delivery.size > MOST_IN_FLIGHT:
            raise Busy(f"{self.in_flight} bytes are waiting for their acknowledgement")
        self.in_flight += delivery.size
        self._open.add(delivery)
        try:
            with self._traces.publishing(self.topic, len(keys)):
                await self._deliver(delivery)
        except asyncio.CancelledError:
            delivery.give_up("the call was broken off")  # what still waits must not be sent without its room
            raise
        finally:
            self._open.remove(delivery)
            self.in_flight -= delivery.size
            self.outcomes["delivered"] += delivery.confirmed
            for outcome, number in delivery.failed.items():
                self.outcomes[outcome] += number
        return delivery

    async def _wait_for_connection(self) -> None:
        """Wait behind those who wait already: or who comes as it is there passes them."""
        self._callers_waiting += 1
        try:
            async with asyncio.timeout(PATIENCE), self._in_turn:
                await self.connection.broker(PATIENCE)
        except TimeoutError:
            raise OutOfReach(self.connection.trouble(OUT_OF_REACH) or OUT_OF_REACH) from None
        finally:
            self._callers_waiting -= 1

    async def _deliver(self, delivery: Delivery) -> None:
        for piece in delivery.slices:
            self._lane(piece.partition).add(piece)
        if not await delivery.wait(DEADLINE):
            error = f"not acknowledged within {DEADLINE:g} s"
            if throttling := self.connection.journal.throttling():
                error = f"{error}: {throttling}"
            stuck = delivery.give_up(error)
            for broker in stuck:
                # an idempotent producer would try that batch for ever, and all that follows would wait behind it
                self.connection.replace(broker, f"the last records to {self.topic} were {error}")

    async def give_up_at(self, ending: asyncio.Event) -> None:
        """When the service is ending, give what is on its way another second; then tell its callers what is known."""
        await ending.wait()
        self.ending.set()
        await asyncio.sleep(LAST_CHANCE)
        self._ended = True
        for delivery in list(self._open):
            delivery.give_up(ENDING)

    def _lane(self, partition: int) -> Lane:
        if partition not in self._lanes:
            self._lanes[partition] = lane = Lane(self, partition)
            self._background.start(lane.run(), f"lane of partition {partition}")
        return self._lanes[partition]
