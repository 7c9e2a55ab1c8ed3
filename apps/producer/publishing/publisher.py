"""Write records to a topic: by key, in batches, with a result for each record.

The records of a call go to the lanes of their partitions by key. The call's `Delivery` collects the results.
"""

import asyncio
import math
import time
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
    """The producer is overloaded or throttled by a quota; retry after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 2) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OutOfReach(Exception):
    """There is no connection to Kafka now; the message says why."""


class Publisher:
    """Publishes to one topic, to all partitions that it has now.

    `outcomes` counts the records of finished calls by outcome. `in_flight` is the bytes of keys and values of
    unfinished calls. `ending` is set when the shutdown begins.
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
    def max_record_bytes(self) -> int:
        """Most bytes of key and value together that one record may have."""
        overhead = BATCH_OVERHEAD_BYTES + RECORD_OVERHEAD_BYTES + self._traces.header_bytes
        return max(0, self.route.max_batch_bytes - overhead)

    @property
    def records_in_flight(self) -> int:
        """Records that wait for their acknowledgement."""
        return sum(delivery.unsettled for delivery in self._open)

    def recent_refusal(self) -> str | None:
        """Return why Kafka refused records in the last 30 s; None if there were none, or later ones were accepted."""
        why = self.route.refusals.newest()
        return why and f"the last records were refused by {self.route.topic}: {why}"

    async def publish(
        self, keys: Sequence[bytes], values: Sequence[bytes], *, since: float | None = None, patient: bool = True
    ) -> Delivery:
        """Write records, and return the result of each within 10 s: of now, or of `since` (`time.monotonic`).

        `keys[i]` belongs to `values[i]`; no record may exceed `max_record_bytes`. Calls keep the order in which they
        start. Raises `Busy` if 32 MiB are in flight, or a quota delays records for more than 2 s. Raises `OutOfReach`
        without a connection within 1.5 s, or at once if not `patient`. Then nothing was sent. These are the defaults
        of `Limits`.
        """
        try:
            delivery = await self._admit(keys, values, patient=patient)
        except (Busy, OutOfReach):
            self.outcomes["not_written"] += len(keys)
            raise
        self.in_flight += delivery.size
        self._open.add(delivery)
        try:
            with self._traces.publishing(self.route.topic, len(keys)):
                await self._deliver(delivery, time.monotonic() if since is None else since)
        except asyncio.CancelledError:
            delivery.give_up("the call was cancelled")  # waiting records must not be sent after their bytes are freed
            raise
        finally:
            self._open.remove(delivery)
            self.in_flight -= delivery.size
            self.outcomes["delivered"] += delivery.confirmed
            for outcome, number in delivery.failed.items():
                self.outcomes[outcome] += number
        return delivery

    async def _admit(self, keys: Sequence[bytes], values: Sequence[bytes], *, patient: bool) -> Delivery:
        route, limits = self.route, self.route.limits
        if route.connection.current is None or self._callers_waiting:
            await self._wait_for_connection(limits.connect_s if patient else 0.0)
        if self._ended:
            raise OutOfReach(ENDING)
        if (seconds := route.throttled_for()) > limits.throttling_s:
            raise Busy(f"a quota of Kafka delays this producer for {seconds:.1f} s more", math.ceil(seconds))
        partitions = partitions_of(keys, route.cluster.partitions[route.topic])
        delivery = Delivery(keys, values, partitions, self._traces.headers())
        if self.in_flight + delivery.size > limits.in_flight_bytes:
            raise Busy(f"{self.in_flight} bytes are waiting for their acknowledgement")
        return delivery

    async def _wait_for_connection(self, connect_s: float) -> None:
        """Wait for a connection in arrival order, so that late callers cannot overtake."""
        connection = self.route.connection
        self._callers_waiting += 1
        try:
            async with asyncio.timeout(connect_s), self._in_turn:
                await connection.broker(connect_s)
        except TimeoutError:
            raise OutOfReach(connection.trouble(OUT_OF_REACH) or OUT_OF_REACH) from None
        finally:
            self._callers_waiting -= 1

    async def _deliver(self, delivery: Delivery, since: float) -> None:
        connection, ack_timeout_s = self.route.connection, self.route.limits.ack_timeout_s
        ack_timeout_s = max(ack_timeout_s - (time.monotonic() - since), 0.0)
        for piece in delivery.slices:
            self._lane(piece.partition).add(piece)
        if not await delivery.wait(ack_timeout_s):
            error = f"not acknowledged within {round(ack_timeout_s, 3):g} s"
            if throttling := connection.journal.throttling():
                error = f"{error}: {throttling}"
            for piece in delivery.slices:
                self._lane(piece.partition).stalled |= piece.left > 0
            for broker in delivery.give_up(error):
                # an idempotent producer would retry that batch for ever, and delay all later ones
                connection.replace(broker, f"the last records to {self.route.topic} were {error}")

    async def give_up_at(self, ending: asyncio.Event) -> None:
        """At shutdown, wait `last_chance_s` for acknowledgements; then settle the rest as it is known."""
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
