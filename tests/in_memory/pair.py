"""Both services in one process, over Kafka in memory: for tests of handlers, from the HTTP call to the commit."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

from faststream.kafka import KafkaBroker, TestKafkaBroker
from httpx import ASGITransport, AsyncClient
from litestar import Litestar
from memory import Memory

from apps.chassis.observability.traces import Traces
from apps.chassis.settings import Settings
from apps.consumer.app import create_app as create_consumer
from apps.consumer.consuming.policy import Policy, Retry
from apps.consumer.consuming.resource import AnyHandler
from apps.producer.app import create_app as create_producer
from contracts.stream import Stream

PATIENCE_S = 30.0
IMPATIENT = Policy(retry=Retry(first_backoff_s=0.001, max_backoff_s=0.01))
"""Backoffs that no test feels."""


class Pair(NamedTuple):
    """Both services as a caller sees them, a broker to publish records as another producer would, and the consumer."""

    producer: AsyncClient
    consumer: AsyncClient
    broker: KafkaBroker
    app: Litestar

    async def until(self, stream: Stream[Any], **expected: object) -> dict[str, Any]:
        """Wait until the status of a stream has some values; return it. Raises `TimeoutError` in the end."""
        return await self.until_status(stream, lambda status: expected.items() <= status.items())

    async def until_status(self, stream: Stream[Any], is_reached: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Wait until the status of a stream is as a condition says; return it. Raises `TimeoutError` in the end."""
        async with asyncio.timeout(PATIENCE_S):
            while not is_reached(status := await self._status(stream)):  # noqa: ASYNC110 - no event tells of a status
                await asyncio.sleep(0.01)
        return status

    async def _status(self, stream: Stream[Any]) -> dict[str, Any]:
        status: dict[str, Any] = (await self.consumer.get("/consumers/status")).json()["streams"][stream.name]
        return status


@asynccontextmanager
async def pair(
    handlers: Mapping[Stream[Any], AnyHandler[Any]],
    memory: Memory | None = None,
    traces: Traces | None = None,
    settings: Settings | None = None,
) -> AsyncIterator[Pair]:
    """Run both services with some streams and their handlers; `memory` is the Kafka between them."""
    memory, settings, streams = memory or Memory(), settings or Settings(), list(handlers)
    policies = dict.fromkeys(streams, IMPATIENT)
    producer = create_producer(settings, streams=streams, kafka=memory.kafka)
    consumer = create_consumer(
        settings, streams=streams, handlers=handlers, policies=policies, kafka=memory.kafka, traces=traces
    )
    async with (
        TestKafkaBroker(*memory.brokers),
        producer.lifespan(),
        consumer.lifespan(),
        _caller_of(producer) as posting,
        _caller_of(consumer) as getting,
    ):
        yield Pair(posting, getting, memory.brokers[0], consumer)


def _caller_of(app: object) -> AsyncClient:
    return AsyncClient(transport=ASGITransport(cast("Any", app)), base_url="http://localhost")
