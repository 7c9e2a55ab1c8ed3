"""Ends transactions and producers of aiokafka in bounded time.

aiokafka's own `producer.transaction()` waits for Kafka to confirm the abort, which may never happen. Only its
transaction manager knows whether there is something left to abort. `producer.stop()` waits until the last batches are
written, which may never happen either. When it is cancelled, its sender and its connections stay open and retry for
ever. Without this module a redrive that is cut off from Kafka would block every later one.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

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
        if not producer._txn_manager.is_fatal_error():
            with suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(ABORT_S):
                    await producer.abort_transaction()
        raise
    await producer.commit_transaction()


async def close_producer(producer: AIOKafkaProducer) -> None:
    """Close a producer; after 1 s end its sender and drop its connections, even with unwritten records."""
    with suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await producer.stop()
            return
    sender = producer._sender.sender_task if producer._sender else None
    if sender is not None:
        sender.cancel()
    with suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await producer.client.close()
