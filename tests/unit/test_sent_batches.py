"""Batches are sent with a producer that shields them: cancelling who waits for them ends none."""

import asyncio
import gc
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from aiokafka.errors import NotLeaderForPartitionError, TopicAuthorizationFailedError
from aiokafka.producer.transaction_manager import TransactionManager

from apps.chassis.internals.transactions import transaction
from apps.chassis.kafka.sent_batches import SentBatches

pytestmark = pytest.mark.anyio


@pytest.mark.slow
async def test_of_a_batch_that_fails_when_nobody_waits_for_it_any_more_no_error_is_logged() -> None:
    loop = asyncio.get_running_loop()
    logged: list[object] = []
    loop.set_exception_handler(lambda _, context: logged.append(context))
    sent, batch = SentBatches(), loop.create_future()
    sent.add(asyncio.shield(batch))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await sent.acknowledged()
    batch.set_exception(NotLeaderForPartitionError())
    for _ in range(3):  # until the loop holds none of its callbacks
        await asyncio.sleep(0)
    del batch, sent
    gc.collect()
    assert logged == []


async def refused_transaction() -> None:
    """Raise what Kafka says to a transaction."""
    manager = TransactionManager("redrive", 1_000)
    manager.set_pid_and_epoch(1, 0)
    begin, abort = AsyncMock(side_effect=manager.begin_transaction), AsyncMock(side_effect=manager.aborting_transaction)
    producer: Any = SimpleNamespace(_txn_manager=manager, begin_transaction=begin, abort_transaction=abort)
    async with transaction(producer):
        refused = TopicAuthorizationFailedError("events")
        manager.error_transaction(refused)
        raise refused


@pytest.mark.slow
async def test_of_a_transaction_that_kafka_refuses_no_error_is_logged_besides_the_one_that_is_raised() -> None:
    logged: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
    with pytest.raises(TopicAuthorizationFailedError):
        await refused_transaction()
    gc.collect()
    assert logged == []


async def test_the_first_error_is_raised_at_once_and_an_acknowledgement_ends_the_wait() -> None:
    loop = asyncio.get_running_loop()
    sent, first, second = SentBatches(), loop.create_future(), loop.create_future()
    sent.add(first)
    sent.add(second)
    assert not await sent.acknowledged(timeout_s=0)
    second.set_exception(NotLeaderForPartitionError())
    with pytest.raises(NotLeaderForPartitionError):
        await sent.acknowledged()
    first.set_result(None)
    assert await sent.acknowledged()
