"""Track the records of one call: a delivery has a slice per partition, and each result settles a span of a slice."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from faststream.kafka import KafkaBroker

from apps.chassis.observability.traces import TraceHeaders
from apps.producer.publishing.receipts import Outcome, Receipt


class Span(NamedTuple):
    """Consecutive records of a slice with the same result: acknowledged at `offset`, or failed with `error`."""

    start: int
    stop: int
    offset: int | None = None
    timestamp: int | None = None
    error: str | None = None
    outcome: Outcome | None = None


class Slice(msgspec.Struct, eq=False):
    """The records of one call that belong to one partition, in their order.

    `delivery` is None once all of them are settled. Otherwise the two would remain a reference cycle, and collecting it
    would delay every caller by about 20 ms. `size` is that of the whole call, in bytes. `handed` counts the records
    that were handed to the client. `failed` is whether a record was not acknowledged: later ones must not overtake it.
    """

    delivery: "Delivery | None"
    partition: int
    rows: Sequence[int]
    keys: Sequence[bytes]
    values: Sequence[bytes]
    size: int
    left: int
    handed: int = 0
    settled: int = 0
    failed: bool = False
    broker: KafkaBroker | None = None
    spans: list[Span] = []

    def settle(self, span: Span) -> None:
        """Note the result of some records. Records that were given up at the deadline keep their result."""
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
        """Settle the records that were not handed to the client as not written."""
        if self.handed < len(self.rows):
            self.settle(Span(self.handed, len(self.rows), error=error, outcome="not_written"))
            self.handed = len(self.rows)


class Delivery:
    """The records of one call and their results. `given_up` is whether the call no longer waits for results."""

    def __init__(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        partitions: Sequence[int],
        headers: TraceHeaders | None = None,
    ) -> None:
        self.headers = headers
        self.size = size = sum(map(len, keys)) + sum(map(len, values))
        self.confirmed = 0
        self.failed: dict[Outcome, int] = {"not_written": 0, "unknown": 0}
        self.unsettled = len(keys)
        self.given_up = False
        if len(set(partitions)) == 1:  # a single record, for example: this halves the cost
            self.slices = [Slice(self, partitions[0], range(len(keys)), keys, values, size, len(keys))]
        else:
            by_partition: defaultdict[int, list[int]] = defaultdict(list)
            for row, partition in enumerate(partitions):
                by_partition[partition].append(row)
            self.slices = [
                Slice(
                    self, partition, rows, [keys[row] for row in rows], [values[row] for row in rows], size, len(rows)
                )
                for partition, rows in by_partition.items()
            ]
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not keys:
            self._done.set_result(None)

    @property
    def complete(self) -> bool:
        """Whether every record was acknowledged."""
        return not self.unsettled and not any(self.failed.values())

    def count(self, span: Span) -> None:
        """Count settled records, and end the wait with the last of them."""
        number = span.stop - span.start
        self.unsettled -= number
        if span.outcome is None:
            self.confirmed += number
        else:
            self.failed[span.outcome] += number
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
        """Settle all remaining records; return the brokers that records of unknown outcome were handed to."""
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
