"""Ends transactions and producers of aiokafka in bounded time.

aiokafka's own `producer.transaction()` waits for Kafka to confirm the abort, which may be never; whether there is
something left to abort is known to its transaction manager alone. `producer.stop()` waits until the last batches are
written, which may be never either; cancelled, it leaves its sender and its connections behind, which never give up.
Without this module a redrive that is cut off from Kafka would hold up every later one.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

ABORT_S = 1.0
"""Seconds to abort a transaction; then Kafka does it, when the next producer with the same id begins."""
CLOSE_S = 1.0
"""Seconds that a producer has to write its last batches and close."""


@asynccontextmanager
async def transaction(producer: AIOKafkaProducer) -> AsyncIterator[None]:
    """Commit a transaction at the end of the block, or abort it within 1 s when the block raises."""
    await producer.begin_transaction()
    try:
        yield
    except BaseException:
        if not producer._txn_manager.is_fatal_error():  # noqa: SLF001 - see above: then Kafka has ended it
            with suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(ABORT_S):
                    await producer.abort_transaction()
        raise
    await producer.commit_transaction()


async def close_producer(producer: AIOKafkaProducer) -> None:
    """Close a producer; after 1 s end its sender and drop its connections, whatever waits to be written."""
    with suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await producer.stop()
            return
    sender = producer._sender.sender_task if producer._sender else None  # noqa: SLF001 - see above
    if sender is not None:
        sender.cancel()
    with suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await producer.client.close()
