"""The pair in memory: POST at the producer, GET at the consumer, without a network. Read this test first."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey
from memory import Memory
from pair import Pair, pair

from apps.chassis.kafka.client_journal import LASTING_S, NORMAL_REBALANCE_S
from apps.chassis.settings import Settings
from apps.consumer.consuming.batch import Batch, Reject
from contracts.stream import Stream

pytestmark = pytest.mark.anyio


class Order(msgspec.Struct):
    order_id: str
    amount_cents: Annotated[int, msgspec.Meta(ge=1)]


class Refund(msgspec.Struct):
    refund_id: str


ORDERS: Stream[Order] = Stream("orders", Order, key=lambda order: order.order_id)
REFUNDS: Stream[Refund] = Stream("refunds", Refund, key=lambda refund: refund.refund_id)


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


@asynccontextmanager
async def shop() -> AsyncIterator[tuple[Pair, Handler, Handler]]:
    """Run the pair with orders and refunds; yield it with the handlers of both."""
    orders, refunds = Handler(), Handler()
    async with pair({ORDERS: orders, REFUNDS: refunds}) as p:
        yield p, orders, refunds


async def test_a_posted_order_is_handled_and_shown() -> None:
    async with shop() as (p, orders, _):
        answer = await p.producer.post("/producers/orders", json={"order_id": "1", "amount_cents": 5})
        assert answer.status_code == HTTPStatus.CREATED
        assert [receipt["id"] for receipt in answer.json()["receipts"]] == ["1"]
        await p.until(ORDERS, messages_consumed_count=1, lag=0)
        assert orders == [Order("1", 5)]
        shown = (await p.consumer.get("/consumers/messages")).json()["messages"]
        assert [(one["key"], one["value"]) for one in shown] == [("1", {"order_id": "1", "amount_cents": 5})]


async def test_a_wrong_order_is_refused_with_its_place_and_none_of_its_list_is_sent() -> None:
    async with shop() as (p, _, _):
        orders = [{"order_id": "1", "amount_cents": 5}, {"order_id": "2", "amount_cents": 0}]
        answer = await p.producer.post("/producers/orders", json=orders)
        assert answer.status_code == HTTPStatus.BAD_REQUEST
        assert answer.json()["errors"][0]["path"] == "$[1].amount_cents"
        assert (await p.consumer.get("/consumers/messages")).json()["messages"] == []


async def test_a_record_that_is_no_order_becomes_a_dead_letter_and_its_neighbour_is_handled() -> None:
    async with shop() as (p, orders, _):
        await p.broker.publish_batch(b"not json", b'{"order_id":"1","amount_cents":5}', topic="orders")
        await p.until(ORDERS, messages_consumed_count=1, dead_lettered_count=1, lag=0)
        assert orders == [Order("1", 5)]
        (letter,) = (await p.consumer.get("/consumers/dead-letters")).json()["dead_letters"]
        assert (letter["value"]["text"], letter["error_type"]) == ("not json", "msgspec.DecodeError")


async def test_dead_letters_are_counted_by_their_reason() -> None:
    async with shop() as (p, orders, _):
        orders.rejected = Order("1", 5)
        await p.producer.post("/producers/orders", json={"order_id": "1", "amount_cents": 5})
        await p.broker.publish(b"no order", ORDERS.topic)
        await p.until(ORDERS, dead_lettered_count=2, lag=0)
        counted = (await p.consumer.get("/consumers/dead-letters/reasons")).json()
        assert (counted["letters"], counted["redrivable"], counted["more"]) == (2, 2, False)
        assert {one["error_type"].rpartition(".")[2]: one["letters"] for one in counted["reasons"]} == {
            "DecodeError": 1,
            "Reject": 1,
        }
        filtered = (await p.consumer.get("/consumers/dead-letters/reasons?reason=not ours")).json()
        assert [one["letters"] for one in filtered["reasons"]] == [1]


async def test_dead_letters_that_name_no_type_of_their_error_are_found_by_that() -> None:
    memory = Memory()
    async with pair({ORDERS: Handler()}, memory) as p:
        topic = p.app.state["parts"]["orders"].settings.dead_letter_topic
        memory.append(topic, 0, 1, (b"1", b"of another writer", ()))
        counted = (await p.consumer.get("/consumers/dead-letters/reasons")).json()["reasons"]
        assert [one["error_type"] for one in counted] == [None]
        for reason, number in {"unknown:": 1, "ValueError:": 0}.items():
            found = await p.consumer.get("/consumers/dead-letters", params={"reason": reason})
            assert len(found.json()["dead_letters"]) == number


async def test_an_order_that_the_handler_rejects_becomes_a_dead_letter_with_its_reason() -> None:
    async with shop() as (p, orders, _):
        orders.rejected = Order("2", 5)
        await p.producer.post("/producers/orders", json=[{"order_id": i, "amount_cents": 5} for i in "123"])
        await p.until(ORDERS, messages_consumed_count=2, dead_lettered_count=1, lag=0)
        (letter,) = (await p.consumer.get("/consumers/dead-letters")).json()["dead_letters"]
        assert (letter["key"]["text"], letter["error"]) == ("2", "not ours")


async def test_orders_wait_while_their_handler_fails_and_refunds_do_not() -> None:
    async with shop() as (p, orders, refunds):
        orders.error = ConnectionError("no database")
        await p.producer.post("/producers/orders", json={"order_id": "1", "amount_cents": 5})
        await p.until(ORDERS, state="retrying", lag=1)
        assert (await p.consumer.get("/health-check?stream=orders")).status_code == HTTPStatus.SERVICE_UNAVAILABLE
        assert (await p.producer.post("/producers/refunds", json={"refund_id": "1"})).status_code == HTTPStatus.CREATED
        await p.until(REFUNDS, messages_consumed_count=1)
        assert (await p.consumer.get("/health-check?stream=refunds")).status_code == HTTPStatus.OK
        orders.error = None
        await p.until(ORDERS, state="running", messages_consumed_count=1, dead_lettered_count=0, lag=0)
        assert (orders, refunds) == ([Order("1", 5)], [Refund("1")])


@pytest.mark.parametrize(("compression", "codec"), [("none", None), ("zstd", "zstd")])
async def test_batches_are_compressed_as_the_setting_says(
    compression: Literal["none", "zstd"], codec: str | None
) -> None:
    async with pair({ORDERS: Handler()}, settings=Settings(compression=compression)) as p:
        assert p.broker._connection_kwargs["compression_type"] == codec


async def test_the_live_tail_and_the_page_answer_to_a_token_alone(tmp_path: Path) -> None:
    """A proxy in front signs people in, and sends their token."""
    key = ECKey.generate_key("P-256", {"kid": "a"})
    jwks = tmp_path / "keys"
    jwks.write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    settings = Settings(jwt_issuer="https://login.example.com", jwt_audience="orders", jwt_jwks=str(jwks))
    claims = {"iss": settings.jwt_issuer, "aud": "orders", "sub": "ada", "exp": time.time() + 600, "roles": ["read"]}
    token = {"Authorization": f"Bearer {jwt.encode({'alg': 'ES256', 'kid': 'a'}, claims, key)}"}
    async with pair({ORDERS: Handler()}, settings=settings) as p:
        for path, kind in (("/", "text/html"), ("/consumers/messages/stream", "text/event-stream")):
            answer = await p.consumer.head(path, headers=token)
            assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (HTTPStatus.OK, kind)
        assert (await p.consumer.head("/consumers/messages/stream")).status_code == HTTPStatus.UNAUTHORIZED


async def test_what_one_stream_waits_for_in_kafka_is_no_trouble_of_another() -> None:
    async with shop() as (p, _, _):
        orders, refunds = (p.app.state["parts"][stream.name] for stream in (ORDERS, REFUNDS))
        orders._connection.journal.joins("the-group-of-orders", 35.0)
        assert orders._connection.journal.awaited_rebalance(after_s=-1) is not None
        assert refunds._connection.journal.awaited_rebalance(after_s=-1) is None


async def test_a_member_that_kafka_had_counted_as_gone_reports_that_it_joined_again() -> None:
    async with shop() as (p, _, _):
        await p.until(ORDERS, state="running")
        consumer = p.app.state["parts"]["orders"].control.consumer
        for member_id in ("one", "another"):
            consumer._coordinator.member_id = member_id
            await consumer._listener.on_partitions_assigned(consumer.assignment())
        status = await p.until(ORDERS, state="running")
        assert status["last_rebalance"]["reason"] == "this instance joined the group again: for Kafka it had been gone"


async def test_an_error_of_kafka_has_a_time_and_stays_the_newest_once_it_is_over() -> None:
    async with shop() as (p, orders, _):
        orders.rejected = Order("1", 5)
        await p.producer.post("/producers/orders", json={"order_id": "1", "amount_cents": 5})
        refused = await p.until(ORDERS, dead_lettered_count=1, lag=0)
        journal = p.app.state["parts"]["orders"]._connection.journal
        journal._now = lambda: time.monotonic() - LASTING_S
        journal.failed("reading", "broker 1 at kafka:9092 cannot be reached")
        journal._now = time.monotonic
        journal.failed("reading", "broker 1 at kafka:9092 cannot be reached")
        lasting = await p.until(ORDERS, state="reconnecting")
        assert lasting["last_error"] == "broker 1 at kafka:9092 cannot be reached"
        assert lasting["last_error_at"] > refused["last_error_at"]
        assert lasting["last_error_lasts"]
        assert not refused["last_error_lasts"], "a dead letter is an error that is over"
        journal.succeeded("reading")
        over = await p.until(ORDERS, state="running")
        assert [over[name] for name in ("last_error", "last_error_at")] == [
            lasting[name] for name in ("last_error", "last_error_at")
        ]
        assert not over["last_error_lasts"]
        await p.producer.post("/producers/orders", json={"order_id": "1", "amount_cents": 5})
        newer = await p.until(ORDERS, dead_lettered_count=2, lag=0)
        assert newer["last_error"].endswith("Reject: not ours")


async def test_a_member_that_waits_for_its_group_has_met_no_error() -> None:
    async with shop() as (p, _, _):
        await p.until(ORDERS, state="running")
        journal = p.app.state["parts"]["orders"]._connection.journal
        journal._now = lambda: time.monotonic() - NORMAL_REBALANCE_S
        journal.joins("the-group-of-orders", 35.0)
        journal._now = time.monotonic
        waiting = await p.until(ORDERS, state="reconnecting")
        health = (await p.consumer.get("/health-check", params={"stream": "orders"})).json()
        assert health["detail"].startswith("waiting for the rebalance of group the-group-of-orders since ")
        assert waiting["last_error"] is None
