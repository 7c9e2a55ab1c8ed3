"""Batches are sent with a producer that shields them: cancelling who waits for them ends none."""

import asyncio
import gc

import pytest
from aiokafka.errors import NotLeaderForPartitionError

from apps.chassis.kafka.sent_batches import SentBatches

pytestmark = pytest.mark.anyio


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
