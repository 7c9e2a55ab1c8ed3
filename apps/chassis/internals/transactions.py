"""Ends transactions and producers of aiokafka in bounded time: a PROTECTION.

aiokafka's own `producer.transaction()` waits for Kafka to confirm the abort, which may never happen. Only its
transaction manager knows whether there is something left to abort. `producer.stop()` waits until the last batches are
written, which may never happen either. When it is cancelled, its sender and its connections stay open and retry for
ever. This reaches for a producer's transaction manager. Lost without it: redrives, which one that is cut off
from Kafka would block for ever.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from apps.chassis.internals.client_parts import fail_unwritten

REACHES = (
    "aiokafka.producer.producer:AIOKafkaProducer.__init__ uses _txn_manager",
    "aiokafka.producer.transaction_manager:TransactionManager.is_fatal_error(self)",
    "aiokafka.producer.transaction_manager:TransactionManager.wait_for_transaction_end(self)",
)


ABORT_S = 1.0
"""Seconds to abort a transaction; after that, Kafka aborts it when the next producer uses the same id."""
CLOSE_S = 1.0
"""Seconds for a producer to write its last batches and close."""


@asynccontextmanager
async def transaction(producer: AIOKafkaProducer) -> AsyncIterator[None]:
    """Commit a transaction at the end of the block, or abort it within 1 s when the block raises."""
    await producer.begin_transaction()
    try:
        yield
    except BaseException:
        ended = producer._txn_manager.wait_for_transaction_end()
        if ended.done() and not ended.cancelled():
            ended.exception()  # the block has raised it: asyncio would log it once more
        if not producer._txn_manager.is_fatal_error():
            with suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(ABORT_S):
                    await producer.abort_transaction()
        raise
    await producer.commit_transaction()


async def close_producer(producer: AIOKafkaProducer) -> None:
    """Close a producer; after 1 s fail what it cannot write, and drop its connections."""
    for way in (producer.stop, partial(fail_unwritten, producer, 0.0)):
        with suppress(KafkaError, OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await way()
                return
