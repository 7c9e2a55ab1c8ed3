"""The pair in memory: POST at the producer, GET at the consumer, without a network. Read this test first."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple

import msgspec
import pytest
from faststream.kafka import KafkaBroker, TestKafkaBroker
from httpx import ASGITransport, AsyncClient
from memory import Memory

from apps.chassis.settings import Settings
from apps.consumer.app import create_app as create_consumer
from apps.consumer.consuming.batch import Batch, Reject
from apps.consumer.consuming.policy import Policy, Retry
from apps.producer.app import create_app as create_producer
from contracts.stream import Stream

pytestmark = pytest.mark.anyio


class Order(msgspec.Struct):
    order_id: str
    amount_cents: Annotated[int, msgspec.Meta(ge=1)]


class Refund(msgspec.Struct):
    refund_id: str


ORDERS: Stream[Order] = Stream("orders", Order, key=lambda order: order.order_id)
REFUNDS: Stream[Refund] = Stream("refunds", Refund, key=lambda refund: refund.refund_id)
IMPATIENT = Policy(retry=Retry(first_backoff_s=0.001, longest_backoff_s=0.01))


class Handler(list[Any]):
    """Keeps the values that it is given; raises `error` instead while there is one, and rejects `rejected`."""

    error: Exception | None = None
    rejected: Any = None

    async def __call__(self, batch: Batch[Any]) -> None:
        if self.error:
            raise self.error
        if self.rejected in batch.values:
            raise Reject("not ours")
        self.extend(batch.values)


class Pair(NamedTuple):
    """Both services as a caller sees them, the handler of each stream, and a broker of another producer."""

    producer: AsyncClient
    consumer: AsyncClient
    orders: Handler
    refunds: Handler
    broker: KafkaBroker

    async def until(self, **expected: object) -> None:
        """Wait until the status of the orders is as expected."""
        async with asyncio.timeout(5):
            while True:
                status = (await self.consumer.get("/consumers/status")).json()["streams"]["orders"]
                if all(status[name] == value for name, value in expected.items()):
                    return
                await asyncio.sleep(0.001)


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    memory, settings, orders, refunds = Memory(), Settings(), Handler(), Handler()
    handlers: dict[Stream[Any], Handler] = {ORDERS: orders, REFUNDS: refunds}
    streams, policies = list(handlers), dict.fromkeys(handlers, IMPATIENT)
    producer = create_producer(settings, streams=streams, kafka=memory.kafka)
    consumer = create_consumer(settings, streams=streams, handlers=handlers, policies=policies, kafka=memory.kafka)
    async with (
        TestKafkaBroker(*memory.brokers),
        producer.lifespan(),
        consumer.lifespan(),
        calling(producer) as posting,
        calling(consumer) as getting,
    ):
        yield Pair(posting, getting, orders, refunds, memory.brokers[0])


def calling(app: Any) -> AsyncClient:  # noqa: ANN401 - Litestar and httpx name the same types differently
    return AsyncClient(transport=ASGITransport(app), base_url="http://localhost")


async def test_a_posted_order_is_handled_and_shown() -> None:
    async with pair() as p:
        answer = await p.producer.post("/producers/orders", json={"order_id": "1", "amount_cents": 5})
        assert answer.status_code == HTTPStatus.CREATED
        assert [receipt["id"] for receipt in answer.json()["receipts"]] == ["1"]
        await p.until(messages_consumed_count=1, lag=0)
        assert p.orders == [Order("1", 5)]
        shown = (await p.consumer.get("/consumers/messages")).json()["messages"]
        assert [(one["key"], one["value"]) for one in shown] == [("1", {"order_id": "1", "amount_cents": 5})]


async def test_a_wrong_order_is_refused_with_its_place_and_none_of_its_list_is_sent() -> None:
    async with pair() as p:
        orders = [{"order_id": "1", "amount_cents": 5}, {"order_id": "2", "amount_cents": 0}]
        answer = await p.producer.post("/producers/orders", json=orders)
        assert answer.status_code == HTTPStatus.BAD_REQUEST
        assert answer.json()["errors"][0]["path"] == "$[1].amount_cents"
        assert (await p.consumer.get("/consumers/messages")).json()["messages"] == []


async def test_a_record_that_is_no_order_becomes_a_dead_letter_and_its_neighbour_is_handled() -> None:
    async with pair() as p:
        await p.broker.publish_batch(b"not json", b'{"order_id":"1","amount_cents":5}', topic="orders")
        await p.until(messages_consumed_count=1, dead_lettered_count=1, lag=0)
        assert p.orders == [Order("1", 5)]
        (letter,) = (await p.consumer.get("/consumers/dead-letters")).json()["dead_letters"]
        assert (letter["value"]["text"], letter["error_type"]) == ("not json", "msgspec.DecodeError")


async def test_an_order_that_the_handler_rejects_becomes_a_dead_letter_with_its_reason() -> None:
    async with pair() as p:
        p.orders.rejected = Order("2", 5)
        await p.producer.post("/producers/orders", json=[{"order_id": i, "amount_cents": 5} for i in "123"])
        await p.until(messages_consumed_count=2, dead_lettered_count=1, lag=0)
        (letter,) = (await p.consumer.get("/consumers/dead-letters")).json()["dead_letters"]
        assert (letter["key"]["text"], letter["error"]) == ("2", "not ours")


async def test_orders_wait_while_their_handler_fails_and_refunds_do_not() -> None:
    async with pair() as p:
        p.orders.error = ConnectionError("no database")
        await p.producer.post("/producers/orders", json={"order_id": "1", "amount_cents": 5})
        await p.until(state="retrying", lag=1)
        assert (await p.consumer.get("/health-check?stream=orders")).status_code == HTTPStatus.SERVICE_UNAVAILABLE
        assert (await p.producer.post("/producers/refunds", json={"refund_id": "1"})).status_code == HTTPStatus.CREATED
        assert (await p.consumer.get("/health-check?stream=refunds")).status_code == HTTPStatus.OK
        p.orders.error = None
        await p.until(state="running", messages_consumed_count=1, dead_lettered_count=0, lag=0)
        assert (p.orders, p.refunds) == ([Order("1", 5)], [Refund("1")])
