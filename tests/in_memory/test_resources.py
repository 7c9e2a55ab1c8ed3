"""Handlers that need something open, in memory: when it is opened, closed and replaced, and what is seen of that."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
import pytest
from memory import Memory, MemoryProducer
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pair import Pair, pair

from apps.chassis.kafka.clients import client_options
from apps.chassis.observability.opentelemetry import OpenTelemetry
from apps.chassis.observability.traces import Traces
from apps.chassis.settings import Settings
from apps.consumer.consuming.batch import Batch, Handler
from apps.consumer.consuming.publish import Publish, Publisher
from apps.consumer.consuming.resource import resource
from contracts.partitioning import partitions_of
from contracts.stream import Stream

pytestmark = pytest.mark.anyio


class Order(msgspec.Struct):
    order_id: str


class Invoice(msgspec.Struct):
    order_id: str
    amount_cents: Annotated[int, msgspec.Meta(ge=1)]


ORDERS: Stream[Order] = Stream("orders", Order, key=lambda order: order.order_id)
INVOICES: Stream[Invoice] = Stream("invoices", Invoice, key=lambda invoice: invoice.order_id)
OpenHandler = Callable[..., AbstractAsyncContextManager[Handler[Order]]]


@asynccontextmanager
async def consuming(
    open_handler: OpenHandler, memory: Memory | None = None, traces: Traces | None = None
) -> AsyncIterator[Pair]:
    async with pair({ORDERS: resource(open_handler)}, memory, traces) as p:
        yield p


async def send(p: Pair, *ids: str) -> None:
    for one in ids:  # one after the other: the poison among them comes before the last
        await p.producer.post("/producers/orders", json={"order_id": one})


class Database:
    """Something to open: it counts its openings, and keeps what is saved while a connection is open and not dead."""

    def __init__(self) -> None:
        self.opened = self.closed = 0
        self.saved: list[str] = []
        self.is_down = False
        self.dead_connections: set[int] = set()
        self.poison = ""

    @asynccontextmanager
    async def handler(self, _: Settings) -> AsyncIterator[Handler[Order]]:
        if self.is_down:
            raise ConnectionRefusedError("no database at localhost")
        self.opened += 1
        connection = self.opened

        async def save(batch: Batch[Order]) -> None:
            if self.is_down or connection in self.dead_connections:
                raise ConnectionError("the connection is dead")
            if self.poison in {order.order_id for order in batch.values}:
                raise ValueError("no database takes it")
            self.saved += [order.order_id for order in batch.values]

        try:
            yield save
        finally:
            self.closed += 1


async def test_a_resource_is_opened_before_the_first_record_and_closed_after_the_last_commit() -> None:
    memory, committed_at_close, database = Memory(), [], Database()

    @asynccontextmanager
    async def handler(settings: Settings) -> AsyncIterator[Handler[Order]]:
        async with database.handler(settings) as save:
            yield save
            committed_at_close.append(sum(commit.offset for commit in memory.committed.values()))

    async with consuming(handler, memory) as p:
        await p.until_status(ORDERS, lambda _: database.opened)
        assert database.saved == []
        await send(p, "1", "2")
        await p.until(ORDERS, messages_consumed_count=2)
    assert sorted(database.saved) == ["1", "2"]
    assert committed_at_close == [2]
    assert (database.opened, database.closed) == (1, 1)


async def test_it_is_closed_only_once_the_last_call_has_ended() -> None:
    database, closed_at_the_end, is_called = Database(), [], asyncio.Event()

    @asynccontextmanager
    async def handler(settings: Settings) -> AsyncIterator[Handler[Order]]:
        async def work(_: Batch[Order]) -> None:
            is_called.set()
            try:
                await asyncio.sleep(3_600)
            finally:
                closed_at_the_end.append(database.closed)

        async with database.handler(settings):
            yield work

    async with consuming(handler) as p:
        await send(p, "1")
        await is_called.wait()
    assert (closed_at_the_end, database.closed) == ([0], 1)


@pytest.mark.slow
async def test_a_plain_function_that_a_resource_yields_runs_in_a_thread() -> None:
    saved: list[str] = []

    @asynccontextmanager
    async def handler(_: Settings) -> AsyncIterator[Handler[Order]]:
        def save(batch: Batch[Order]) -> None:
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            saved.extend(order.order_id for order in batch.values)

        yield save

    async with consuming(handler) as p:
        await send(p, "1")
        await p.until(ORDERS, messages_consumed_count=1)
    assert saved == ["1"]


async def test_a_dead_connection_is_replaced_while_nothing_succeeds_and_nothing_is_dead_lettered() -> None:
    database = Database()
    async with consuming(database.handler) as p:
        await send(p, "1")
        await p.until(ORDERS, messages_consumed_count=1)
        database.dead_connections = {1, 2}
        await send(p, "2", "3")
        await p.until(ORDERS, messages_consumed_count=3, state="running", dead_lettered_count=0, lag=0)
        assert (database.opened, database.closed) == (3, 2)
    assert sorted(database.saved) == ["1", "2", "3"]


async def test_poison_among_others_costs_no_reopening() -> None:
    database = Database()
    database.poison = "9"
    async with consuming(database.handler) as p:
        await p.consumer.post("/consumers/stop")
        await send(p, *map(str, range(30)))
        await p.consumer.post("/consumers/start")  # so that all are in one batch: some are handled after the poison
        await p.until(ORDERS, messages_consumed_count=29, dead_lettered_count=1, lag=0)
        assert database.opened == 1


async def test_what_cannot_be_opened_is_seen_and_costs_no_record() -> None:
    database = Database()
    database.is_down = True
    async with consuming(database.handler) as p:
        await p.until(ORDERS, state="retrying", last_error="ConnectionRefusedError: no database at localhost")
        await send(p, "1", "2")
        await p.until(ORDERS, state="retrying", lag=2)
        health = await p.consumer.get("/health-check")
        assert health.status_code == HTTPStatus.SERVICE_UNAVAILABLE
        assert "the resource of the handler cannot be opened: ConnectionRefusedError" in health.json()["detail"]
        # it dead-letters what fails: nothing was tried
        await p.consumer.post("/consumers/start", json={"accept": True})
        await p.until(ORDERS, state="retrying", lag=2, dead_lettered_count=0)
        database.is_down = False
        status = await p.until(ORDERS, messages_consumed_count=2, state="running", dead_lettered_count=0, lag=0)
        assert status["last_error"] == "ConnectionRefusedError: no database at localhost"  # over, and still the last
        assert (await p.consumer.get("/health-check")).status_code == HTTPStatus.OK
    assert sorted(database.saved) == ["1", "2"]


async def test_health_does_not_say_that_all_is_well_before_it_is_open() -> None:
    database, may_open = Database(), asyncio.Event()

    @asynccontextmanager
    async def handler(settings: Settings) -> AsyncIterator[Handler[Order]]:
        await may_open.wait()
        async with database.handler(settings) as save:
            yield save

    async with consuming(handler) as p:
        await p.until(ORDERS, state="retrying")
        health = await p.consumer.get("/health-check")
        assert health.status_code == HTTPStatus.SERVICE_UNAVAILABLE
        may_open.set()
        await p.until(ORDERS, state="running")
        assert (await p.consumer.get("/health-check")).status_code == HTTPStatus.OK


async def test_a_suspect_is_not_taken_for_poison_because_the_resource_does_not_open_again() -> None:
    database = Database()
    database.poison = "1"
    async with consuming(database.handler) as p:
        await send(p, "1")
        await p.until(ORDERS, state="retrying", lag=1)
        database.is_down = True
        await p.until_status(ORDERS, lambda status: "ConnectionRefusedError" in str(status["last_error"]))
        await send(p, "2")
        await p.until(ORDERS, state="retrying", lag=2, dead_lettered_count=0)
        database.poison, database.is_down = "", False
        await p.until(ORDERS, messages_consumed_count=2, dead_lettered_count=0, state="running")


async def test_a_stop_by_an_operator_keeps_it_open() -> None:
    database = Database()
    async with consuming(database.handler) as p:
        await send(p, "1")
        await p.until(ORDERS, messages_consumed_count=1)
        await p.consumer.post("/consumers/stop")
        await p.until(ORDERS, state="stopped")
        assert database.closed == 0
        await p.consumer.post("/consumers/start")
        await send(p, "2")
        await p.until(ORDERS, messages_consumed_count=2)
        assert (database.opened, database.closed) == (1, 0)
    assert database.closed == 1


async def test_what_raises_when_it_is_closed_is_logged_and_opened_again(caplog: pytest.LogCaptureFixture) -> None:
    database = Database()

    @asynccontextmanager
    async def handler(settings: Settings) -> AsyncIterator[Handler[Order]]:
        async with database.handler(settings) as save:
            yield save
            raise OSError("it does not close")

    with caplog.at_level(logging.WARNING):
        async with consuming(handler) as p:
            await send(p, "1")
            await p.until(ORDERS, messages_consumed_count=1)
            database.dead_connections = {1}
            await send(p, "2")
            await p.until(ORDERS, messages_consumed_count=2, state="running")
    closings = [one for one in caplog.records if "raised when it was closed" in one.getMessage()]
    assert len(closings) == 2


async def test_what_ends_by_itself_is_opened_again() -> None:
    database = Database()

    is_lost = asyncio.Event()

    async def lose_connection() -> None:
        await is_lost.wait()
        is_lost.clear()
        raise ConnectionResetError("the connection is lost")

    @asynccontextmanager
    async def handler(settings: Settings) -> AsyncIterator[Handler[Order]]:
        async with database.handler(settings) as save, asyncio.TaskGroup() as group:
            watch = group.create_task(lose_connection())
            yield save
            watch.cancel()

    async with consuming(handler) as p:
        await send(p, "1")
        await p.until(ORDERS, messages_consumed_count=1)
        is_lost.set()
        await p.until_status(ORDERS, lambda _: database.opened == 2)
        await send(p, "2")
        status = await p.until(ORDERS, messages_consumed_count=2, state="running")
        assert "unhandled errors in a TaskGroup" in status["last_error"]


async def test_a_handler_publishes_to_another_stream_with_keys_headers_and_strict_values() -> None:
    memory, seen = Memory(), {}

    @asynccontextmanager
    async def handler(_: Settings, publish: Publish) -> AsyncIterator[Handler[Order]]:
        async def bill(batch: Batch[Order]) -> None:
            for record in batch:
                try:
                    await publish(INVOICES, [Invoice(record.value.order_id, len(record.value.order_id) - 1)])
                except msgspec.ValidationError as error:
                    batch.reject(record, str(error))
            await publish(INVOICES, [])
            await publish(INVOICES, [Invoice("x", 1), Invoice("y", 2)], headers=[("from", b"orders"), ("null", None)])

        yield bill

    async with consuming(handler, memory) as p:
        await send(p, "12", "1")
        await p.until(ORDERS, messages_consumed_count=1, dead_lettered_count=1, lag=0)
        for tp, records in memory.records.items():
            if tp.topic == "invoices":
                seen.update({record.key: (tp.partition, record.value, list(record.headers)) for record in records})
    headers = [("from", b"orders"), ("null", None)]
    (of_12, of_x, of_y) = partitions_of([b"12", b"x", b"y"], 6)
    assert seen == {
        b"12": (of_12, b'{"order_id":"12","amount_cents":1}', []),
        b"x": (of_x, b'{"order_id":"x","amount_cents":1}', headers),
        b"y": (of_y, b'{"order_id":"y","amount_cents":2}', headers),
    }


def no_key(_: Invoice) -> str:
    raise LookupError("no such order")


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        (lambda _: "", "the key is empty: no call could delete the record"),
        (lambda _: "k" * 20_000, "the key has 20000 bytes, expected at most 16384: no call could"),
        (no_key, "the record has no key: LookupError: no such order"),
    ],
)
async def test_a_handler_publishes_nothing_that_the_producer_of_the_stream_would_refuse(
    key: Callable[[Invoice], str], fault: str
) -> None:
    memory, stream = Memory(), Stream("bills", Invoice, key=key, deletes=True)
    publisher = Publisher(Settings(), client_options(Settings(), "consumer"), Traces(), memory.kafka)
    async with publisher.open() as publish:
        with pytest.raises(msgspec.ValidationError, match=fault):
            await publish(stream, [Invoice("1", 1)])
    assert not any(memory.records.values())


async def test_a_resource_that_is_opened_again_publishes_as_the_successor_of_its_earlier_producers() -> None:
    """Kafka would write what the network held back of another producer behind newer records of its keys."""
    memory, made = Memory(), list[tuple[str, object]]()

    def new_producer(**options: Any) -> MemoryProducer:  # noqa: ANN401 - aiokafka's
        epochs = options["client_id"].journal.epochs
        made.append((epochs.topic, epochs))
        return MemoryProducer(memory)

    kafka = replace(memory.kafka, producer=new_producer)
    publisher = Publisher(Settings(), client_options(Settings(), "consumer"), Traces(), kafka)
    for _ in range(2):
        async with publisher.open() as publish:
            await publish(INVOICES, [Invoice("1", 1)])
            await publish(ORDERS, [Order("1")])
    assert [topic for topic, _ in made] == ["invoices", "orders"] * 2
    assert made[:2] == made[2:]


async def test_what_a_handler_publishes_is_in_the_trace_of_its_record() -> None:
    memory, trace = Memory(), "0af7651916cd43dd8448eb211c80319c"

    @asynccontextmanager
    async def handler(_: Settings, publish: Publish) -> AsyncIterator[Handler[Order]]:
        async def bill(batch: Batch[Order]) -> None:
            await publish(INVOICES, [Invoice(order.order_id, 1) for order in batch.values])

        yield bill

    traces = OpenTelemetry("consumer", SimpleSpanProcessor(InMemorySpanExporter()))
    async with consuming(handler, memory, traces) as p:
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        await p.broker.publish({"order_id": "1"}, "orders", key=b"1", headers=headers)
        await p.until(ORDERS, messages_consumed_count=1)
    (invoice,) = (record for tp, records in memory.records.items() if tp.topic == "invoices" for record in records)
    assert trace.encode() in (dict(invoice.headers)["traceparent"] or b"")
