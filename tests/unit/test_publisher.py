import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiokafka import errors
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import RecordMetadata
from faststream.kafka import KafkaBroker, KafkaPublishMessage, TestKafkaBroker
from samples import LONG, everything_else_has_run, until

from apps.chassis.background import Background
from apps.chassis.internals.client_batch import Records
from apps.chassis.internals.kafka_client import Throttled, watch_kafka_clients
from apps.chassis.kafka.clients import client_options, new_broker
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.connection import Connection
from apps.chassis.observability.traces import Traces
from apps.chassis.settings import Settings
from apps.producer.publishing.deliveries import Delivery
from apps.producer.publishing.lanes import (
    BATCH_OVERHEAD_BYTES,
    MAX_BATCH_BYTES,
    RECORD_OVERHEAD_BYTES,
    Lane,
    Limits,
    Route,
    size_of_headers,
)
from apps.producer.publishing.publisher import Busy, OutOfReach, Publisher
from apps.producer.publishing.receipts import Receipt
from apps.producer.publishing.refusals import Refusals
from apps.producer.publishing.transport import Send, accelerated, publish
from apps.producer.publishing.values import expected_size
from contracts.partitioning import partitions_of

pytestmark = pytest.mark.anyio

TOPIC = "events"


A_WHILE = 0.2
"""Seconds: a deadline that is to pass."""


class Sent:
    """A batch that was handed to the client, to be answered by the test."""

    def __init__(
        self,
        messages: Sequence[KafkaPublishMessage],
        partition: int,
        timestamp: int,
        headers: dict[str, str] | None,
    ) -> None:
        self.headers = headers
        self.keys = [message.key for message in messages]
        self.values = [message.body for message in messages]
        self.partition = partition
        self.timestamp = timestamp
        self.answer: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()

    def confirm(self, offset: int, *, timestamp: int | None = None, timestamp_type: int = 0) -> None:
        written = RecordMetadata(TOPIC, self.partition, None, offset, timestamp, timestamp_type, 0)
        self.answer.set_result(written)

    def fail(self, error: Exception) -> None:
        self.answer.set_exception(error)


class FakeBroker:
    """Takes batches as FastStream's broker does, for the test to answer.

    While `takes` is not set it takes none; `error` is raised instead of taking one. What goes to a partition in
    `confirms` is acknowledged at once, with the offset given there.
    """

    def __init__(self) -> None:
        self.batches: list[Sent] = []
        self.asked = 0
        self.error: Exception | None = None
        self.confirms: dict[int, int] = {}
        self.takes = asyncio.Event()
        self.takes.set()

    async def publish_batch(
        self,
        *messages: KafkaPublishMessage,
        topic: str,
        partition: int,
        timestamp_ms: int,
        headers: dict[str, str] | None,
        no_confirm: bool,
    ) -> "asyncio.Future[RecordMetadata]":
        assert topic == TOPIC
        assert no_confirm
        self.asked += 1
        await self.takes.wait()
        if self.error is not None:
            raise self.error
        self.batches.append(Sent(messages, partition, timestamp_ms, headers))
        if partition in self.confirms:
            self.batches[-1].confirm(self.confirms[partition])
        return self.batches[-1].answer

    @property
    def values(self) -> list[Any]:
        return [value for batch in self.batches for value in batch.values]

    def confirm_all(self) -> None:
        """Acknowledge all batches, with offsets from 0 on."""
        offset = 0
        for batch in self.batches:
            batch.confirm(offset)
            offset += len(batch.values)


async def _published(
    broker: KafkaBroker, partition: int, timestamp_ms: int, records: Records, headers: Mapping[str, str] | None
) -> "asyncio.Future[RecordMetadata]":
    """Send with FastStream's own call, which fakes can replace."""
    messages = [KafkaPublishMessage(value, key=key) for key, value in records]
    sent: asyncio.Future[RecordMetadata] = await broker.publish_batch(
        *messages,
        topic=TOPIC,
        partition=partition,
        timestamp_ms=timestamp_ms,
        headers=dict(headers) if headers else None,
        no_confirm=True,
    )
    return sent


class Bench:
    """A publisher with the brokers that the test gives it."""

    def __init__(self, background: Background, partitions: int, retry_backoff: float, limits: Limits) -> None:
        options = client_options(Settings(), "producer")
        self.connection = Connection(_nothing_is_made, _nothing_to_prepare)
        self.cluster = Cluster(options, [])
        self.cluster.partitions[TOPIC] = partitions
        self.limits = limits
        self.route = Route(TOPIC, self.connection, self.cluster, retry_backoff, send=_published, limits=self.limits)
        self.publisher = Publisher(self.route, background, Traces())

    def connect(self, broker: object = None) -> FakeBroker:
        broker = broker or FakeBroker()
        self.connection.current = cast(KafkaBroker, broker)
        self.connection._connected.set()
        return cast(FakeBroker, broker)

    async def on_its_way(
        self, *values: bytes, keys: Sequence[bytes] | None = None
    ) -> "tuple[FakeBroker, asyncio.Task[Delivery]]":
        """Connect, and publish records that the broker has, and does not acknowledge yet."""
        broker, publishing = self.connect(), self.publish(*values, keys=keys)
        await until(lambda: len(broker.values) == len(values))
        return broker, publishing

    def disconnect(self) -> None:
        assert self.connection.current is not None
        self.connection.replace(self.connection.current, "the test says so")

    def publish(self, *values: bytes, keys: Sequence[bytes] | None = None) -> "asyncio.Task[Delivery]":
        return asyncio.create_task(self.publisher.publish(keys or [b"key"] * len(values), list(values)))

    def limit_batches(self, records: int, value: bytes) -> None:
        size = BATCH_OVERHEAD_BYTES + records * (len(b"key") + len(value) + RECORD_OVERHEAD_BYTES)
        self.cluster.configs[TOPIC] = {"max.message.bytes": str(size)}


def _nothing_is_made() -> KafkaBroker:
    raise AssertionError("no test has the connection make a broker")


async def _nothing_to_prepare() -> None:
    pass


@asynccontextmanager
async def bench(partitions: int = 1, retry_backoff: float = LONG, **limits: Any) -> AsyncIterator[Bench]:  # noqa: ANN401 - fields of `Limits`
    """By default every record is sent at once, and what a broker refuses is refused at the first attempt."""
    background = Background()
    async with asyncio.timeout(3 * LONG), background.open():
        yield Bench(background, partitions, retry_backoff, Limits(**{"small_bytes": 0, **limits}))
    assert background.failure is None


def new_error(code: int) -> type[Exception]:
    """Return the error of a code that aiokafka does not know by itself."""
    watch_kafka_clients()
    error: type[Exception] = errors.for_code(code)
    return error


def numbered(count: int) -> list[bytes]:
    return [f"value {i}".encode() for i in range(count)]


def keys_of_two_partitions() -> list[bytes]:
    """Return a key of each partition of a topic that has two."""
    by_partition = {partitions_of([key], 2)[0]: key for key in (b"a", b"b", b"c", b"d", b"e", b"f", b"g")}
    return [by_partition[0], by_partition[1]]


def receipts_of(delivery: Delivery) -> list[Receipt]:
    count = sum(len(piece.rows) for piece in delivery.slices)
    receipts = delivery.receipts([str(i) for i in range(count)])
    assert [receipt.id for receipt in receipts] == [str(i) for i in range(count)]
    return receipts


def outcomes(delivery: Delivery) -> list[str | None]:
    return [receipt.outcome for receipt in receipts_of(delivery)]


def offsets(delivery: Delivery) -> list[int | None]:
    return [receipt.offset for receipt in receipts_of(delivery)]


async def test_receipts_come_in_the_order_of_the_caller_whatever_partition_each_record_went_to() -> None:
    keys = [f"event {i}".encode() for i in range(200)]
    partitions = partitions_of(keys, 3)
    async with bench(partitions=3) as b:
        broker, publishing = await b.on_its_way(*numbered(200), keys=keys)
        for batch in reversed(broker.batches):
            batch.confirm(offset=1_000 * batch.partition)
        delivery = await publishing
    written = {(batch.partition, i): batch.values[i] for batch in broker.batches for i in range(len(batch.values))}
    assert [receipt.partition for receipt in receipts_of(delivery)] == partitions
    for i, receipt in enumerate(receipts_of(delivery)):
        assert receipt.partition is not None
        assert receipt.offset is not None
        assert written[receipt.partition, receipt.offset - 1_000 * receipt.partition] == f"value {i}".encode()
    assert delivery.confirmed == 200
    assert delivery.complete


async def test_a_record_travels_with_its_own_key_to_the_partition_of_that_key() -> None:
    keys = [f"event {i}".encode() for i in range(50)]
    async with bench(partitions=4) as b:
        broker, publishing = await b.on_its_way(*[b"of " + key for key in keys], keys=keys)
        for batch in broker.batches:
            assert batch.values == [b"of " + key for key in batch.keys if key is not None]
            assert partitions_of([key for key in batch.keys if key is not None], 4) == [batch.partition] * len(
                batch.keys
            )
            batch.confirm(0)
        await publishing


async def test_a_delivery_ends_only_with_its_last_acknowledgement() -> None:
    keys = [f"event {i}".encode() for i in range(20)]
    async with bench(partitions=3) as b:
        broker, publishing = await b.on_its_way(*numbered(20), keys=keys)
        *others, last = broker.batches
        for batch in others:
            batch.confirm(0)
        await everything_else_has_run()
        assert not publishing.done()
        last.confirm(0)
        assert (await publishing).complete


async def test_nothing_to_send_is_delivered_at_once() -> None:
    async with bench() as b:
        b.connect()
        delivery = await b.publisher.publish([], [])
        assert delivery.complete
        assert receipts_of(delivery) == []


async def test_records_are_split_into_batches_that_the_topic_takes_and_keep_their_order() -> None:
    values = [bytes([i]) * 100 for i in range(10)]
    async with bench() as b:
        broker = b.connect()
        b.limit_batches(4, values[0])
        publishing = b.publish(*values)
        await until(lambda: len(broker.values) == 10)
        assert [len(batch.values) for batch in broker.batches] == [4, 4, 2]
        assert broker.values == values
        for first, batch in zip([100, 700, 800], broker.batches, strict=True):
            batch.confirm(first)
        assert offsets(await publishing) == [100, 101, 102, 103, 700, 701, 702, 703, 800, 801]


@pytest.mark.parametrize(
    "headers", [None, {"traceparent": "x" * 55}, {"traceparent": "x" * 55, "tracestate": "y" * 512}]
)
@pytest.mark.parametrize(("key", "value"), [(64, 0), (0, 0), (16, 100), (256, 60_000), (0, 2_000_000)])
async def test_a_batch_in_the_format_of_kafka_is_never_larger_than_was_reckoned(
    key: int, value: int, headers: dict[str, str] | None
) -> None:
    records = 500 if value < 1_000 else 3
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=1,
        producer_epoch=1,
        base_sequence=1,
        batch_size=2**30,
    )
    for i in range(records):
        sent = [(name, value.encode()) for name, value in (headers or {}).items()]
        builder.append(i, 1_700_000_000_000, b"k" * key, b"v" * value, sent)
    overhead = RECORD_OVERHEAD_BYTES + size_of_headers(headers)
    assert len(builder.build()) <= BATCH_OVERHEAD_BYTES + records * (key + value + overhead)


async def test_the_largest_record_that_is_taken_fits_the_topic() -> None:
    async with bench() as b:
        broker = b.connect()
        b.cluster.configs[TOPIC] = {"max.message.bytes": "50"}
        assert b.publisher.max_record_bytes == 0
        words = expected_size(b.publisher.max_record_bytes)
        assert words.startswith("and the topic takes none: its max.message.bytes")
        b.cluster.configs[TOPIC] = {"max.message.bytes": "2000"}
        value = bytes(b.publisher.max_record_bytes - len(b"key"))
        publishing = b.publish(value, value)
        await until(lambda: len(broker.values) == 2)
        for batch in broker.batches:
            assert len(batch.values) == 1
            assert BATCH_OVERHEAD_BYTES + RECORD_OVERHEAD_BYTES + len(b"key") + len(batch.values[0]) == 2_000
            batch.confirm(0)
        await publishing


async def test_a_record_that_the_topic_has_ceased_to_take_travels_alone_for_the_broker_to_refuse() -> None:
    async with bench() as b:
        b.cluster.configs[TOPIC] = {"max.message.bytes": "1000"}
        lane = Lane(b.route, 0)
        lane.add(Delivery([b"key"] * 3, [bytes(2_000), b"a", b"b"], [0] * 3).slices[0])
        taken = [lane._take(cast(KafkaBroker, FakeBroker())) for _ in range(2)]
        assert [[value for _, value in batch.records] for batch in taken] == [[bytes(2_000)], [b"a", b"b"]]


async def test_a_topic_that_takes_more_is_still_sent_batches_that_let_others_pass() -> None:
    async with bench() as b:
        assert b.route.max_batch_bytes == MAX_BATCH_BYTES
        b.cluster.configs[TOPIC] = {"max.message.bytes": "100000000"}
        assert b.route.max_batch_bytes == MAX_BATCH_BYTES


async def test_what_waits_for_one_partition_travels_in_one_batch_and_each_call_gets_its_own_offsets() -> None:
    async with bench() as b:
        broker = b.connect()
        broker.takes.clear()
        first = b.publish(b"first")
        await until(lambda: broker.asked == 1)
        second, third = b.publish(b"second a", b"second b"), b.publish(b"third")
        await everything_else_has_run()
        broker.takes.set()
        await until(lambda: len(broker.values) == 4)
        assert [batch.values for batch in broker.batches] == [[b"first"], [b"second a", b"second b", b"third"]]
        broker.batches[0].confirm(7)
        broker.batches[1].confirm(50)
        assert offsets(await first) == [7]
        assert offsets(await second) == [50, 51]
        assert offsets(await third) == [52]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_batch_is_sent_while_the_one_before_is_not_acknowledged_yet_and_does_not_fail_with_it(
    *, fails: bool
) -> None:
    async with bench() as b:
        broker, first = await b.on_its_way(b"first")
        second = b.publish(b"second")
        await until(lambda: len(broker.batches) == 2)
        broker.batches[1].confirm(1)
        assert offsets(await second) == [1]
        assert not first.done()
        if fails:
            broker.batches[0].fail(errors.RequestTimedOutError())
        else:
            broker.batches[0].confirm(0)
        assert outcomes(await first) == (["unknown"] if fails else [None])
        assert offsets(await first) == ([None] if fails else [0])


async def test_an_answered_call_leaves_nothing_for_a_collection_of_garbage_in_which_all_others_would_wait() -> None:
    async with bench() as b:
        broker = b.connect()
        broker.confirms = dict.fromkeys(range(6), 0)
        gc.disable()
        try:
            delivery = weakref.ref(await b.publish(b"one", b"two"))
            await everything_else_has_run()
            assert delivery() is None
        finally:
            gc.enable()


async def test_small_records_wait_while_a_batch_is_on_its_way_and_then_travel_together() -> None:
    async with bench(small_bytes=1_000) as b:
        broker, first = await b.on_its_way(b"first")
        others = [b.publish(b"second"), b.publish(b"third")]
        await everything_else_has_run()
        assert len(broker.batches) == 1
        broker.batches[0].confirm(0)
        await until(lambda: len(broker.batches) == 2)
        assert broker.batches[1].values == [b"second", b"third"]
        broker.batches[1].confirm(1)
        assert [offsets(await one) for one in (first, *others)] == [[0], [1], [2]]


async def test_records_that_are_not_small_together_do_not_wait_for_the_batch_before() -> None:
    async with bench(small_bytes=1_000) as b:
        broker, _ = await b.on_its_way(b"first")
        b.publish(b"x" * 600)
        await everything_else_has_run()
        assert len(broker.batches) == 1
        b.publish(b"y" * 600)
        await until(lambda: len(broker.batches) == 2)
        assert broker.batches[1].values == [b"x" * 600, b"y" * 600]
        broker.confirm_all()


async def test_small_records_behind_a_batch_that_failed_are_sent_by_the_next_broker() -> None:
    async with bench(small_bytes=1_000) as b:
        broker, first = await b.on_its_way(b"first")
        second = b.publish(b"second")
        await everything_else_has_run()
        broker.batches[0].fail(errors.TopicAuthorizationFailedError())
        following = b.connect()
        await until(lambda: len(following.batches) == 1)
        following.batches[0].confirm(7)
        assert offsets(await second) == [7]
        assert receipts_of(await first)[0].outcome == "not_written"


@pytest.mark.parametrize("error", [errors.TopicAuthorizationFailedError, errors.MessageSizeTooLargeError])
async def test_a_batch_refused_at_its_first_attempt_was_not_written_and_the_producer_is_replaced(
    error: type[Exception],
) -> None:
    async with bench(retry_backoff=LONG) as b:
        broker, publishing = await b.on_its_way(b"a", b"b")
        broker.batches[0].fail(error())
        delivery = await publishing
        assert outcomes(delivery) == ["not_written", "not_written"]
        assert all(error.__name__ in (receipt.error or "") for receipt in receipts_of(delivery))
        assert delivery.confirmed == 0
        assert b.connection.replaced == 1
        assert b.connection.current is None
        assert b.connection.error is not None
        assert error.__name__ in b.connection.error


@pytest.mark.parametrize(
    ("error", "retry_backoff"),
    [(errors.OutOfOrderSequenceNumber(), 0.0), (errors.RequestTimedOutError(), LONG), (None, LONG)],
    ids=["refused after a retry", "no refusal", "cut off by a shutdown"],
)
async def test_a_batch_that_fails_otherwise_may_have_been_written(
    error: Exception | None, retry_backoff: float
) -> None:
    async with bench(retry_backoff=retry_backoff) as b:
        broker, publishing = await b.on_its_way(b"a")
        if error:
            broker.batches[0].fail(error)
        else:
            broker.batches[0].answer.cancel()
        assert outcomes(await publishing) == ["unknown"]
        assert b.connection.replaced == (1 if error else 0)


async def test_what_the_client_did_not_take_waits_and_is_sent_by_the_next_broker_in_order() -> None:
    async with bench() as b:
        old = b.connect()
        old.error = RuntimeError("the producer is closed")
        old.takes.clear()
        first = b.publish(b"1 a", b"1 b")
        await until(lambda: old.asked == 1)
        second = b.publish(b"2")
        old.takes.set()
        await until(lambda: b.connection.replaced == 1)
        third = b.publish(b"3")
        await everything_else_has_run()
        assert not old.batches
        new = b.connect()
        await until(lambda: len(new.values) == 4)
        assert new.values == [b"1 a", b"1 b", b"2", b"3"]
        new.confirm_all()
        assert offsets(await first) == [0, 1]
        assert offsets(await second) == [2]
        assert offsets(await third) == [3]


async def test_several_calls_in_a_batch_that_the_client_did_not_take_are_sent_again_in_order() -> None:
    values = numbered(7)
    async with bench() as b:
        old = b.connect()
        b.limit_batches(3, values[0])
        old.error = RuntimeError("the producer is closed")
        old.takes.clear()
        calls = [b.publish(*values[:2]), b.publish(*values[2:])]
        await until(lambda: old.asked == 1)
        old.takes.set()
        await until(lambda: b.connection.replaced == 1)
        new = b.connect()
        await until(lambda: len(new.values) == 7)
        assert new.values == values
        new.confirm_all()
        assert [offsets(await call) for call in calls] == [[0, 1], [2, 3, 4, 5, 6]]


async def test_a_new_broker_is_not_used_while_the_old_one_still_sends_a_batch_to_the_partition() -> None:
    async with bench() as b:
        old, first = await b.on_its_way(b"first")
        b.disconnect()
        new = b.connect()
        second = b.publish(b"second")
        await everything_else_has_run()
        assert new.asked == 0
        old.batches[0].confirm(0)
        await until(lambda: new.batches)
        assert new.values == [b"second"]
        new.batches[0].confirm(1)
        assert offsets(await first) == [0]
        assert offsets(await second) == [1]


async def test_another_partition_does_not_wait_for_what_the_old_broker_still_sends() -> None:
    keys = keys_of_two_partitions()
    async with bench(partitions=2) as b:
        old, first = await b.on_its_way(b"first", keys=keys[:1])
        b.disconnect()
        new, second = await b.on_its_way(b"second", keys=keys[1:])
        assert new.values == [b"second"]
        new.batches[0].confirm(1)
        old.batches[0].confirm(0)
        await asyncio.gather(first, second)


async def test_a_batch_that_is_not_acknowledged_in_time_may_be_written_yet_and_the_producer_is_replaced() -> None:
    async with bench(ack_timeout_s=A_WHILE) as b:
        broker = b.connect()
        delivery = await b.publish(b"a", b"b")
        assert [batch.values for batch in broker.batches] == [[b"a", b"b"]]
        assert outcomes(delivery) == ["unknown", "unknown"]
        assert all("not acknowledged" in (receipt.error or "") for receipt in receipts_of(delivery))
        assert b.connection.replaced == 1
        assert b.publisher.in_flight == 0
        broker.batches[0].confirm(3)
        await everything_else_has_run()
        assert outcomes(delivery) == ["unknown", "unknown"]
        assert delivery.confirmed == 0


async def test_what_was_acknowledged_before_the_deadline_stays_so() -> None:
    keys = keys_of_two_partitions()
    async with bench(partitions=2) as b:
        b.limits.ack_timeout_s = A_WHILE
        broker = b.connect()
        broker.confirms = {1: 9}
        delivery = await b.publish(b"1", b"2", keys=keys)
        assert outcomes(delivery) == ["unknown", None]
        assert offsets(delivery) == [None, 9]
        assert delivery.confirmed == 1
        assert not delivery.complete


async def test_records_of_a_partition_that_stalled_and_cannot_be_used_delay_no_others_until_it_can() -> None:
    keys = keys_of_two_partitions()
    async with bench(partitions=2, ack_timeout_s=A_WHILE) as b:
        broker = b.connect()
        broker.confirms = {1: 9}
        b.cluster.unusable[TOPIC] = {0: "no leader"}
        assert outcomes(await b.publish(b"1", b"2", keys=keys)) == ["unknown", None]  # a new leader is waited for
        b.limits.ack_timeout_s = LONG
        next(batch for batch in broker.batches if batch.partition == 0).fail(errors.KafkaTimeoutError())
        broker = b.connect()
        broker.confirms = {0: 8, 1: 10}
        async with asyncio.timeout(LONG / 2):
            refused = await b.publish(b"3", b"4", keys=keys)
        assert outcomes(refused) == ["not_written", None]
        assert receipts_of(refused)[0].error == "partition 0 has no leader"
        assert broker.values == [b"4"]
        b.cluster.unusable[TOPIC] = {}
        assert outcomes(await b.publish(b"5", b"6", keys=keys)) == [None, None]
        b.cluster.unusable[TOPIC] = {0: "no leader"}
        assert outcomes(await b.publish(b"7", b"8", keys=keys)) == [None, None]


async def test_the_time_for_an_acknowledgement_may_count_from_an_earlier_moment() -> None:
    async with bench(ack_timeout_s=LONG) as b:
        b.connect()
        async with asyncio.timeout(LONG / 2):
            delivery = await b.publisher.publish([b"key"], [b"value"], since=time.monotonic() - LONG)
        assert not delivery.complete


async def test_what_still_waited_at_the_deadline_was_not_written_and_never_will_be() -> None:
    async with bench(ack_timeout_s=A_WHILE) as b:
        broker = b.connect()
        broker.takes.clear()
        first = b.publish(b"first")
        await until(lambda: broker.asked == 1)
        delivery = await b.publish(b"second")
        assert outcomes(delivery) == ["not_written"]
        await first
        broker.takes.set()
        b.limits.ack_timeout_s = LONG
        new = b.connect()
        third = b.publish(b"third")
        await until(lambda: broker.batches)
        broker.batches[0].confirm(0)
        await until(lambda: new.batches)
        new.batches[0].confirm(1)
        assert offsets(await third) == [1]
        assert broker.values + new.values == [b"first", b"third"]


async def test_what_was_given_up_while_the_client_was_not_taking_it_is_not_sent_again() -> None:
    async with bench(ack_timeout_s=A_WHILE) as b:
        old = b.connect()
        old.takes.clear()
        old.error = RuntimeError("the producer is closed")
        delivery = await b.publish(b"given up")
        assert outcomes(delivery) == ["unknown"]
        old.takes.set()
        new = b.connect()
        b.limits.ack_timeout_s = LONG
        later = b.publish(b"later")
        await until(lambda: new.batches)
        new.batches[0].confirm(0)
        await later
        assert new.values == [b"later"]


async def test_without_a_connection_a_call_that_is_not_patient_is_refused_at_once() -> None:
    async with bench(connect_s=LONG) as b, asyncio.timeout(LONG / 2):
        with pytest.raises(OutOfReach, match="Kafka is out of reach"):
            await b.publisher.publish([b"key"], [b"value"], patient=False)
        b.connect().confirms = {0: 1}
        assert (await b.publisher.publish([b"key"], [b"value"], patient=False)).complete


async def test_without_a_connection_nothing_is_taken_and_the_reason_is_reported() -> None:
    async with bench(connect_s=A_WHILE) as b:
        with pytest.raises(OutOfReach, match="Kafka is out of reach"):
            await b.publish(b"a")
        b.connection.error = "no broker at localhost:9092"
        with pytest.raises(OutOfReach, match="no broker at localhost:9092"):
            await b.publish(b"a")
        assert b.publisher.in_flight == 0


async def test_a_connection_that_comes_in_time_is_used() -> None:
    async with bench() as b:
        publishing = b.publish(b"a")
        await everything_else_has_run()
        broker = b.connect()
        await until(lambda: broker.batches)
        broker.batches[0].confirm(0)
        assert offsets(await publishing) == [0]


async def test_who_waits_for_a_connection_is_not_overtaken_by_who_comes_when_it_is_there() -> None:
    async with bench() as b:
        waiting = [b.publish(value) for value in numbered(2)]
        await everything_else_has_run()
        late = b.publish(b"late")
        broker = b.connect()
        broker.confirms = {0: 0}
        await asyncio.gather(*waiting, late)
        assert broker.values == [*numbered(2), b"late"]


async def test_who_waits_behind_others_for_a_connection_is_answered_as_soon_as_they() -> None:
    async with bench(connect_s=A_WHILE) as b:
        waiting = [b.publish(value) for value in numbered(2)]
        first, second = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(first, OutOfReach)
        assert isinstance(second, OutOfReach)


async def test_records_whose_connection_is_lost_before_they_were_handed_over_are_refused_as_not_written() -> None:
    async with bench(connect_s=A_WHILE) as b:
        broker = b.connect()
        broker.error = RuntimeError("the producer is closed")
        delivery = await b.publish(b"a", b"b")
        assert outcomes(delivery) == ["not_written", "not_written"]
        assert all("the producer is closed" in (receipt.error or "") for receipt in receipts_of(delivery))
        new, later = await b.on_its_way(b"later")
        assert new.values == [b"later"]
        new.batches[0].confirm(0)
        await later


async def test_too_much_on_the_way_is_refused_until_some_of_it_is_acknowledged() -> None:
    async with bench(in_flight_bytes=2 * len(b"key" + b"12345")) as b:
        broker = b.connect()
        first, second = b.publish(b"12345"), b.publish(b"12345")
        await until(lambda: len(broker.values) == 2)
        with pytest.raises(Busy, match=r"^[0-9]+ bytes are waiting for their acknowledgement$"):
            await b.publish(b"")
        broker.confirm_all()
        await asyncio.gather(first, second)
        assert b.publisher.in_flight == 0
        third = b.publish(b"12345", b"12345")
        await until(lambda: len(broker.values) == 4)
        for batch in broker.batches[-1:]:
            batch.confirm(2)
        assert (await third).complete


async def test_what_is_refused_for_want_of_room_is_not_sent() -> None:
    async with bench(in_flight_bytes=10) as b:
        broker = b.connect()
        with pytest.raises(Busy):
            await b.publish(b"x" * 11)
        await everything_else_has_run()
        assert broker.asked == 0
        assert b.publisher.in_flight == 0


@pytest.mark.parametrize("end", ["failed", "given up", "cancelled"])
async def test_records_give_their_room_back_however_they_end(end: str) -> None:
    async with bench(ack_timeout_s=A_WHILE if end == "given up" else LONG) as b:
        broker, publishing = await b.on_its_way(b"12345")
        assert b.publisher.in_flight == len(b"key" + b"12345")
        if end == "failed":
            broker.batches[0].fail(errors.RequestTimedOutError())
        if end == "cancelled":
            publishing.cancel()
        await asyncio.wait([publishing])
        assert b.publisher.in_flight == 0


async def test_what_follows_a_failed_part_of_a_call_is_not_sent_lest_it_comes_before_it() -> None:
    values = numbered(3)
    async with bench() as b:
        old = b.connect()
        b.limit_batches(1, values[0])
        gate_second(old)
        publishing = b.publish(*values)
        other = b.publish(b"another")
        await until(lambda: old.asked == 2)
        old.batches[0].fail(errors.RequestTimedOutError())
        await until(lambda: b.connection.replaced == 1)
        new = b.connect()
        old.takes.set()
        await until(lambda: len(old.batches) == 2)
        old.batches[1].fail(errors.OutOfOrderSequenceNumber())
        await until(lambda: new.batches)
        assert new.values == [b"another"]
        new.batches[0].confirm(9)
        delivery = await publishing
        assert outcomes(delivery) == ["unknown", "not_written", "not_written"]
        assert "earlier record" in (receipts_of(delivery)[2].error or "")
        assert offsets(await other) == [9]


def gate_second(broker: FakeBroker) -> None:
    """Have the broker take one batch, and no second one until `takes` is set again."""
    publish_batch: Callable[..., Awaitable[asyncio.Future[RecordMetadata]]] = broker.publish_batch

    async def taking_one(*messages: KafkaPublishMessage, **options: Any) -> "asyncio.Future[RecordMetadata]":  # noqa: ANN401 - passed on
        answer = await publish_batch(*messages, **options)
        if broker.asked == 1:
            broker.takes.clear()
        return answer

    broker.publish_batch = taking_one  # type: ignore[method-assign]  # a fake is bent for one test


@pytest.mark.parametrize(
    ("offset", "timestamp", "timestamp_type", "offsets", "keeps_ours"),
    [(-1, None, 0, [None, None], True), (0, -1, 0, [0, 1], True), (5, 1_234_567_890_123, 1, [5, 6], False)],
    ids=["an offset that the broker had forgotten", "the time of the record", "the time of the broker"],
)
async def test_a_receipt_has_the_offset_and_the_time_that_the_topic_has(
    offset: int, timestamp: int | None, timestamp_type: int, offsets: list[int | None], *, keeps_ours: bool
) -> None:
    async with bench() as b:
        broker, publishing = await b.on_its_way(b"a", b"b")
        broker.batches[0].confirm(offset, timestamp=timestamp, timestamp_type=timestamp_type)
        delivery = await publishing
    assert delivery.complete
    time = broker.batches[0].timestamp if keeps_ours else timestamp
    expected = [Receipt(str(row), partition=0, offset=at, timestamp=time) for row, at in enumerate(offsets)]
    assert receipts_of(delivery) == expected


async def test_when_the_service_ends_every_caller_learns_what_is_known() -> None:
    async with bench(partitions=2, last_chance_s=0.0) as b:
        broker = b.connect()
        broker.confirms = {0: 5}
        ending = asyncio.Event()
        giving_up = asyncio.create_task(b.publisher.give_up_at(ending))
        on_the_way = b.publish(b"written", b"handed", keys=keys_of_two_partitions())
        await until(lambda: len(broker.batches) == 2)
        broker.takes.clear()
        blocking = b.publish(b"blocking", keys=keys_of_two_partitions()[1:])
        await until(lambda: broker.asked == 3)
        waiting = b.publish(b"waiting", keys=keys_of_two_partitions()[1:])
        await everything_else_has_run()
        assert not on_the_way.done()
        ending.set()
        await giving_up
        assert outcomes(await on_the_way) == [None, "unknown"]
        assert offsets(await on_the_way) == [5, None]
        assert outcomes(await waiting) == ["not_written"]
        await blocking
        with pytest.raises(OutOfReach, match="shutting down"):
            await b.publish(b"too late")
        broker.takes.set()
        await everything_else_has_run()
        assert b"waiting" not in broker.values
        assert b.publisher.in_flight == 0


async def test_records_follow_when_the_topic_gets_more_partitions() -> None:
    keys = [f"event {i}".encode() for i in range(40)]
    async with bench(partitions=1) as b:
        broker = b.connect()
        b.cluster.partitions[TOPIC] = 5
        publishing = b.publish(*numbered(40), keys=keys)
        await until(lambda: len(broker.values) == 40)
        assert {batch.partition for batch in broker.batches} == set(partitions_of(keys, 5))
        broker.confirm_all()
        await publishing


async def test_records_of_a_partition_that_a_recreated_topic_lacks_are_refused_and_cost_no_other_a_connection() -> None:
    keys = [f"event {i}".encode() for i in range(40)]
    async with bench(partitions=5) as b:
        old = b.connect()
        old.error = ValueError("Unrecognized partition")
        publishing = b.publish(*numbered(40), keys=keys)
        await until(lambda: b.connection.replaced == 1)
        b.cluster.partitions[TOPIC] = 2
        broker = FakeBroker()
        broker.confirms = {0: 0, 1: 0}
        b.connect(broker)
        receipts = (await publishing).receipts([key.decode() for key in keys])
        assert {batch.partition for batch in broker.batches} == {0, 1}
        assert b.connection.replaced == 1
    refused = [receipt for receipt in receipts if receipt.error]
    assert len(refused) == sum(partition > 1 for partition in partitions_of(keys, 5)) > 0
    assert {receipt.outcome for receipt in refused} == {"not_written"}
    assert {receipt.error for receipt in refused} == {f"topic events has no partition {n}" for n in (2, 3, 4)}


@pytest.mark.parametrize("send", [publish, accelerated])
async def test_a_subscriber_in_memory_gets_what_was_published_byte_for_byte_and_receipts_have_no_offset(
    send: Send,
) -> None:
    keys = ["Ωμέγα".encode(), b"\x00\xff", b"c", b"d"]
    values = [b'{"id": "1"}', b"\x00\xff", b"5", b"{}"]
    received: list[tuple[bytes, bytes, int, int]] = []
    broker = new_broker(client_options(Settings(), "producer"))
    broker.publisher(TOPIC, batch=True)

    @broker.subscriber(TOPIC, batch=True, decoder=_raw)
    async def take(records: Any) -> None:  # noqa: ANN401 - raw records
        received.extend((record.key, record.value, record.partition, record.timestamp) for record in records)

    async with TestKafkaBroker(broker), bench(partitions=2) as b:
        b.route.send = send
        b.connect(broker)
        delivery = await b.publish(*values, keys=keys)
    receipts = receipts_of(delivery)
    assert delivery.complete
    for key, value, receipt in zip(keys, values, receipts, strict=True):
        assert (key, value, receipt.partition, receipt.timestamp) in received
        assert receipt.offset is None
    assert len(received) == 4


async def _raw(message: Any) -> Any:  # noqa: ANN401 - FastStream's message
    return message.raw_message


async def test_what_waits_of_a_call_that_was_broken_off_is_not_sent() -> None:
    async with bench() as some:
        broker = some.connect()
        broker.takes.clear()
        first = some.publish(b"first")
        await until(lambda: broker.asked == 1)
        broken_off = some.publish(b"of the call that was broken off")
        await everything_else_has_run()
        broken_off.cancel()
        await everything_else_has_run()
        last = some.publish(b"last")
        broker.confirms[0] = 0
        broker.takes.set()
        await asyncio.gather(first, last)
        assert broker.values == [b"first", b"last"]


async def test_records_are_counted_by_what_became_of_them_once_their_call_is_done() -> None:
    keys = keys_of_two_partitions()
    async with bench(partitions=2, retry_backoff=0) as b:
        broker, publishing = await b.on_its_way(b"a", b"b", keys=keys)
        assert b.publisher.records_in_flight == 2
        broker.batches[0].confirm(0)
        await everything_else_has_run()
        assert b.publisher.records_in_flight == 1
        broker.batches[1].fail(errors.RequestTimedOutError())
        await publishing
        assert b.publisher.records_in_flight == 0
    assert b.publisher.outcomes == {"delivered": 1, "not_written": 0, "unknown": 1}


async def test_records_that_are_not_taken_count_as_not_written() -> None:
    async with bench(connect_s=A_WHILE, in_flight_bytes=10) as b:
        with pytest.raises(OutOfReach):
            await b.publish(b"a")
        b.connect()
        with pytest.raises(Busy):
            await b.publish(bytes(5), bytes(5))
    assert b.publisher.outcomes == {"delivered": 0, "not_written": 3, "unknown": 0}


async def test_the_time_of_each_acknowledged_batch_is_reported_and_of_no_other() -> None:
    reported: list[float] = []
    async with bench(partitions=2) as b:
        b.route.acknowledged_after = reported.append
        broker, publishing = await b.on_its_way(b"a", b"b", keys=keys_of_two_partitions())
        broker.batches[0].confirm(0)
        broker.batches[1].fail(errors.MessageSizeTooLargeError())
        await publishing
    assert len(reported) == 1
    assert reported[0] >= 0


class Following(Traces):
    """Follows every call, in the trace that the test says."""

    header_bytes = 100

    def __init__(self) -> None:
        self.current: dict[str, str] | None = None

    def headers(self) -> dict[str, str] | None:
        return self.current


async def test_records_of_two_traces_never_travel_in_one_batch_and_those_of_one_do() -> None:
    async with bench() as b:
        b.publisher._traces = following = Following()
        broker = b.connect()
        broker.takes.clear()
        calls = [b.publish(b"in flight")]
        await until(lambda: broker.asked == 1)
        for trace, value in [("1", b"a"), ("1", b"b"), ("2", b"c"), ("", b"d"), ("", b"e"), ("1", b"f")]:
            following.current = {"traceparent": trace} if trace else None
            calls.append(b.publish(value))
            await everything_else_has_run()
        broker.takes.set()
        await until(lambda: len(broker.values) == 7)
        sent = [(batch.headers, batch.values) for batch in broker.batches]
        broker.confirm_all()
        await asyncio.gather(*calls)
    assert sent == [
        (None, [b"in flight"]),
        ({"traceparent": "1"}, [b"a", b"b"]),
        ({"traceparent": "2"}, [b"c"]),
        (None, [b"d", b"e"]),
        ({"traceparent": "1"}, [b"f"]),
    ]


async def test_the_largest_record_leaves_room_for_the_headers_of_its_trace() -> None:
    async with bench() as b:
        without = b.publisher.max_record_bytes
        b.publisher._traces = Following()
        assert b.publisher.max_record_bytes == without - Following.header_bytes


async def test_records_are_refused_before_they_are_taken_while_a_quota_holds_up_the_producer() -> None:
    async with bench() as b:
        broker = b.connect()
        b.connection.journal.throttled(1, 12.2)
        with pytest.raises(Busy, match="quota") as refused:
            await b.publish(b"a")
        assert refused.value.retry_after == 13
        assert broker.batches == []
        assert b.publisher.outcomes["not_written"] == 1


async def test_records_that_are_taken_wait_outside_of_the_client_for_a_quota_that_lets_them_pass_soon() -> None:
    async with bench() as b:
        broker = b.connect()
        b.connection.journal.throttled(1, 3 * A_WHILE)
        publishing = b.publish(b"a")
        await everything_else_has_run()
        assert broker.batches == []
        await until(lambda: broker.batches)
        broker.batches[0].confirm(0)
        assert offsets(await publishing) == [0]


async def test_what_was_kept_out_of_a_throttled_client_is_known_to_be_unwritten() -> None:
    async with bench(ack_timeout_s=A_WHILE) as b:
        b.connect()
        b.connection.journal.throttled(1, 1.9)
        delivery = await b.publish(b"a")
        assert outcomes(delivery) == ["not_written"]
        assert "quota" in (receipts_of(delivery)[0].error or "")
        assert b.publisher.recent_refusal() is None


async def test_records_that_the_client_held_back_for_a_quota_were_not_written_however_late_that_is_reported() -> None:
    async with bench(retry_backoff=0.0) as b:
        broker, publishing = await b.on_its_way(b"first")
        broker.batches[0].fail(Throttled("a quota lets no more records pass for 60.0 s"))
        assert outcomes(await publishing) == ["not_written"]
        assert b.publisher.recent_refusal() is None


@pytest.mark.parametrize("error", [errors.InvalidTimestampError, new_error(87)])
async def test_a_refusal_is_reported_in_the_brokers_words_and_counts_until_the_partition_takes_records(
    error: type[Exception],
) -> None:
    async with bench() as b:
        broker, publishing = await b.on_its_way(b"first")
        b.connection.journal.refused(TOPIC, 0, "Timestamp 5 is out of range")
        broker.batches[0].fail(error())
        delivery = await publishing
        assert outcomes(delivery) == ["not_written"]
        assert "Timestamp 5 is out of range" in (receipts_of(delivery)[0].error or "")
        assert "Timestamp 5 is out of range" in str(b.publisher.recent_refusal())
        broker, publishing = await b.on_its_way(b"first")
        broker.batches[0].confirm(0)
        await publishing
        assert b.publisher.recent_refusal() is None


def test_a_refusal_is_over_with_its_producer_or_once_any_partition_accepts_what_was_refused_for_the_topic() -> None:
    refusals = Refusals()
    refusals.add(0, errors.OutOfOrderSequenceNumber(), "a recreated topic knows no such number")
    assert refusals.newest() is None
    refusals.add(0, errors.TopicAuthorizationFailedError(), "no permission")
    refusals.add(1, errors.InvalidTimestampError(), "Timestamp 5 is out of range")
    refusals.clear(2)
    assert refusals.newest() == "Timestamp 5 is out of range"
    refusals.clear(1)
    assert refusals.newest() is None


async def test_a_refusal_counts_no_longer_when_nothing_was_refused_for_a_while() -> None:
    async with bench() as b:
        b.route.refusals.add(0, errors.InvalidTimestampError(), "Timestamp 5 is out of range")
        assert b.publisher.recent_refusal()
        b.route.refusals.recent_s = 0.0
        assert b.publisher.recent_refusal() is None


async def test_records_that_are_not_acknowledged_are_named_as_such_until_there_is_a_new_connection() -> None:
    async with bench(ack_timeout_s=A_WHILE) as b:
        b.connect()
        assert outcomes(await b.publish(b"a")) == ["unknown"]
        trouble = f"the last records to {TOPIC} were not acknowledged within {A_WHILE:g} s"
        assert (b.connection.trouble(), b.publisher.recent_refusal()) == (trouble, None)
        b.connect()
        assert (b.connection.trouble(), b.publisher.recent_refusal()) == (None, None)
