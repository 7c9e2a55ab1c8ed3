"""A seek is answered with what became of it: the commit of the new positions comes first."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, KafkaError, UnknownError
from memory import PARTITIONS, MemoryConsumer, MemoryProducer
from pair import Pair, pair
from test_pair import ORDERS, Order, shop

from apps.consumer.consuming.batch import Batch

pytestmark = pytest.mark.anyio

BEGINNING = {"to": "beginning"}


async def consume(p: Pair, number: int) -> None:
    """Post an order, and wait until so many orders have been consumed."""
    await p.producer.post("/producers/orders", json={"order_id": "1", "amount_cents": number})
    await p.until(ORDERS, messages_consumed_count=number, lag=0)


@pytest.mark.parametrize(
    ("error", "status"),
    [(UnknownError(), HTTPStatus.SERVICE_UNAVAILABLE), (CommitFailedError(), HTTPStatus.CONFLICT)],
)
async def test_consumption_goes_on_where_it_was_when_the_commit_of_a_seek_fails(
    error: KafkaError, status: HTTPStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: MemoryConsumer, __: Mapping[TopicPartition, tuple[int, str]]) -> None:
        raise error

    async with shop() as (p, orders, _):
        await consume(p, 1)
        with monkeypatch.context() as refusing:
            refusing.setattr(MemoryConsumer, "commit", refuse)
            answer = await p.consumer.post("/consumers/seek?stream=orders", json=BEGINNING)
        assert answer.status_code == status
        await consume(p, 2)
        assert orders == [Order("1", 1), Order("1", 2)]


async def test_a_rebalance_waits_for_a_seek(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    commit = MemoryConsumer.commit

    async def revoke(consumer: MemoryConsumer) -> None:
        await consumer._listener.on_partitions_revoked(consumer.assignment())
        events.append("revoked")
        await consumer._listener.on_partitions_assigned(consumer.assignment())

    async def rebalance(consumer: MemoryConsumer, offsets: Mapping[TopicPartition, tuple[int, str]]) -> None:
        revoking.append(asyncio.create_task(revoke(consumer)))
        for _ in range(50):
            await asyncio.sleep(0)
        await commit(consumer, offsets)
        events.append("committed")

    async with shop() as (p, _, _):
        await consume(p, 1)
        revoking: list[asyncio.Task[None]] = []
        with monkeypatch.context() as rebalancing:
            rebalancing.setattr(MemoryConsumer, "commit", rebalance)
            await p.consumer.post("/consumers/seek?stream=orders", json=BEGINNING)
            await asyncio.gather(*revoking)
        assert events == ["committed", "revoked"]
        await p.until(ORDERS, messages_consumed_count=2, lag=0)


async def test_a_seek_of_one_partition_repeats_nothing_in_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that was known of records that wait was forgotten: those behind them were handled again."""
    handled: list[int] = []

    async def reject_one(batch: Batch[Order]) -> None:
        for record in batch:
            if record.value.amount_cents == 1:
                batch.reject(record, "not ours")
            else:
                handled.append(record.value.amount_cents)

    async def refuse(*_: object, **__: object) -> None:
        raise OSError("no dead-letter topic")

    async with pair({ORDERS: reject_one}) as p:
        with monkeypatch.context() as refusing:
            refusing.setattr(MemoryProducer, "send_batch", refuse)
            orders = [{"order_id": "1", "amount_cents": number} for number in (1, 2, 3)]
            receipts = (await p.producer.post("/producers/orders", json=orders)).json()["receipts"]
            await p.until(ORDERS, state="retrying")
            other = (receipts[0]["partition"] + 1) % PARTITIONS
            answer = await p.consumer.post("/consumers/seek", json={"partition": other, "to": "beginning"})
            assert answer.json()["partitions"] == {str(other): 0}
        await p.until(ORDERS, messages_consumed_count=2, dead_lettered_count=1, lag=0)
        assert handled == [2, 3]


async def test_a_dry_run_answers_what_a_seek_would_repeat_or_skip_and_moves_nothing() -> None:
    async with shop() as (p, orders, _):
        await consume(p, 1)
        await consume(p, 2)
        answer = (await p.consumer.post("/consumers/seek?stream=orders&dry_run=true", json=BEGINNING)).json()
        assert (answer["would_handle_again"], answer["would_skip"]) == (2, 0)
        assert set(answer["partitions"].values()) == {0}
        await consume(p, 3)
        assert orders == [Order("1", 1), Order("1", 2), Order("1", 3)]
        await p.consumer.post("/consumers/stop")
        refused = await p.consumer.post("/consumers/seek?stream=orders&dry_run=true", json=BEGINNING)
        assert refused.status_code == HTTPStatus.CONFLICT


async def test_a_dry_run_counts_an_in_flight_batch_as_skipped_because_a_seek_may_abandon_it() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def wait(_: Batch[Order]) -> None:
        begun.set()
        await may_end.wait()

    async with pair({ORDERS: wait}) as p:
        await p.producer.post("/producers/orders", json={"order_id": "1", "amount_cents": 1})
        await begun.wait()
        for place, counts in (({"to": "end"}, (0, 1)), (BEGINNING, (0, 0))):
            answer = (await p.consumer.post("/consumers/seek?dry_run=true", json=place)).json()
            assert (answer["would_handle_again"], answer["would_skip"]) == counts
        may_end.set()
