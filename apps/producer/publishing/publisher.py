"""Writes records to a topic: keyed, in batches, each with what became of it.

A call's records are spread over the lanes of their partitions by key, and its `Delivery` collects what becomes of them.
"""

import asyncio
import math
from collections.abc import Sequence

from apps.chassis.background import Background
from apps.chassis.observability.traces import Traces
from apps.producer.publishing.deliveries import Delivery
from apps.producer.publishing.lanes import (
    BATCH_OVERHEAD_BYTES,
    ENDING,
    OUT_OF_REACH,
    RECORD_OVERHEAD_BYTES,
    Lane,
    Route,
)
from contracts.partitioning import partitions_of


class Busy(Exception):
    """Too many records wait for their acknowledgement; try again after `retry_after` s."""

    def __init__(self, message: str, retry_after: int = 2) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OutOfReach(Exception):
    """There is no connection to Kafka now; the message says why."""


class Publisher:
    """Publishes to one topic, as many partitions as it has now.

    `outcomes` counts the records of the calls that are done by what became of them. `in_flight` are the bytes of keys
    and values of the calls not yet done. `ending` is set when the service is about to end.
    """

    def __init__(self, route: Route, background: Background, traces: Traces) -> None:
        self.route = route
        self.in_flight = 0
        self.outcomes = {"delivered": 0, "not_written": 0, "unknown": 0}
        self.ending = asyncio.Event()
        self._ended = False
        self._open: set[Delivery] = set()
        self._traces = traces
        self._background = background
        self._lanes: dict[int, Lane] = {}
        self._in_turn = asyncio.Lock()
        self._callers_waiting = 0

    @property
    def largest_record(self) -> int:
        """Bytes of key and value together that one record may have."""
        return self.route.largest_batch - BATCH_OVERHEAD_BYTES - RECORD_OVERHEAD_BYTES - self._traces.header_bytes

    @property
    def records_in_flight(self) -> int:
        """Records that wait for their acknowledgement."""
        return sum(delivery.unsettled for delivery in self._open)

    def recent_refusal(self) -> str | None:
        """Return why Kafka refused the last records of a partition, within 30 s; None when it accepted them."""
        why = self.route.refusals.newest()
        return why and f"the last records were refused by {self.route.topic}: {why}"

    async def publish(self, keys: Sequence[bytes], values: Sequence[bytes]) -> Delivery:
        """Write records, and return the result of each: within 10 s.

        `keys[i]` belongs to `values[i]`; each record must fit `largest_record`. Calls that are started one after the
        other keep their order. With nothing sent, raises `Busy` when 48 MiB wait for their acknowledgement, or when a
        quota delays records for more than 2 s, and `OutOfReach` when there is no connection within 1.5 s.
        """
        try:
            delivery = await self._admit(keys, values)
        except (Busy, OutOfReach):
            self.outcomes["not_written"] += len(keys)
            raise
        self.in_flight += delivery.size
        self._open.add(delivery)
        try:
            with self._traces.publishing(self.route.topic, len(keys)):
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

    async def _admit(self, keys: Sequence[bytes], values: Sequence[bytes]) -> Delivery:
        route, limits = self.route, self.route.limits
        if route.connection.current is None or self._callers_waiting:
            await self._wait_for_connection()
        if self._ended:
            raise OutOfReach(ENDING)
        if (seconds := route.throttled_for()) > limits.throttling_s:
            raise Busy(f"a quota of Kafka delays this producer for {seconds:.1f} s more", math.ceil(seconds))
        partitions = partitions_of(keys, route.cluster.partitions[route.topic])
        delivery = Delivery(keys, values, partitions, self._traces.headers())
        if self.in_flight + delivery.size > limits.in_flight_bytes:
            raise Busy(f"{self.in_flight} bytes are waiting for their acknowledgement")
        return delivery

    async def _wait_for_connection(self) -> None:
        """Wait for a connection in arrival order, so that late callers cannot overtake."""
        connection, connect_s = self.route.connection, self.route.limits.connect_s
        self._callers_waiting += 1
        try:
            async with asyncio.timeout(connect_s), self._in_turn:
                await connection.broker(connect_s)
        except TimeoutError:
            raise OutOfReach(connection.trouble(OUT_OF_REACH) or OUT_OF_REACH) from None
        finally:
            self._callers_waiting -= 1

    async def _deliver(self, delivery: Delivery) -> None:
        connection, ack_timeout_s = self.route.connection, self.route.limits.ack_timeout_s
        for piece in delivery.slices:
            self._lane(piece.partition).add(piece)
        if not await delivery.wait(ack_timeout_s):
            error = f"not acknowledged within {ack_timeout_s:g} s"
            if throttling := connection.journal.throttling():
                error = f"{error}: {throttling}"
            for broker in delivery.give_up(error):
                # an idempotent producer would retry that batch for ever, and all that follows would wait behind it
                connection.replace(broker, f"the last records to {self.route.topic} were {error}")

    async def give_up_at(self, ending: asyncio.Event) -> None:
        """When the service is ending, wait another second for acknowledgements; then answer with what is known."""
        await ending.wait()
        self.ending.set()
        await asyncio.sleep(self.route.limits.last_chance_s)
        self._ended = True
        for delivery in list(self._open):
            delivery.give_up(ENDING)

    def _lane(self, partition: int) -> Lane:
        if partition not in self._lanes:
            self._lanes[partition] = lane = Lane(self.route, partition)
            self._background.start(lane.run(), f"lane of partition {partition}")
        return self._lanes[partition]
