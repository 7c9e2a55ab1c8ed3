"""Publish from a handler: write values to another stream of this pair, at least once for each batch."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol, TypeVar

import msgspec

from apps.chassis.kafka.clients import ClientOptions, for_purpose
from apps.chassis.kafka.kafka import Kafka
from apps.chassis.kafka.topic_writer import TopicWriter
from apps.chassis.kafka.topics import record_topic
from apps.chassis.observability.traces import Traces
from apps.chassis.settings import Settings
from contracts.dead_letter import Header
from contracts.stream import NoKey, Stream, encode

T = TypeVar("T")


class Publish(Protocol):
    """What a handler publishes with."""

    async def __call__(self, stream: Stream[T], values: Sequence[T], *, headers: Sequence[Header] = ()) -> None:
        """Write values to a stream; return when all in-sync replicas have them.

        Let what it raises fail the batch: the batch is redelivered then, and its values are written again. Raises
        `msgspec.ValidationError` for a value that the stream's producer would refuse, and what `TopicWriter` raises.
        """


class Publisher:
    """Writes to the streams of this pair, each through a producer that is opened by its first values."""

    def __init__(self, settings: Settings, options: ClientOptions, traces: Traces, kafka: Kafka) -> None:
        self._settings = settings
        self._options = options
        self._traces = traces
        self._kafka = kafka
        self._writers: dict[str, TopicWriter] = {}
        self._options_of: dict[str, ClientOptions] = {}
        self._opened = AsyncExitStack()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Publish]:
        """Give what to publish with; close all producers at the end."""
        async with AsyncExitStack() as self._opened:
            try:
                yield self.publish
            finally:
                self._writers.clear()

    async def publish(self, stream: Stream[Any], values: Sequence[Any], *, headers: Sequence[Header] = ()) -> None:
        """Write values to a stream; see `Publish`."""
        if not values:
            return
        keys, encoded = _records_of(stream, values)
        writer = await self._writer_of(stream)
        with self._traces.publishing(writer.topic, len(encoded)):
            traced = [(name, text.encode()) for name, text in (self._traces.headers() or {}).items()]
            await writer.write(keys, encoded, [*headers, *traced])

    async def _writer_of(self, stream: Stream[Any]) -> TopicWriter:
        own = self._settings.of(stream)
        if own.topic not in self._writers:
            # those of an earlier opening: its producer is succeeded, so that nothing it sent comes behind newer records
            options = self._options_of.setdefault(own.topic, for_purpose(self._options, "publish"))
            cluster = self._kafka.cluster(options, [record_topic(own, "write")])
            prepare, new_producer = cluster.ensure_topics, self._kafka.producer
            writer = TopicWriter(options, own.topic, cluster, new_producer, prepare=prepare)
            self._writers[own.topic] = writer  # before another call can come
            await self._opened.enter_async_context(cluster.open())
            await self._opened.enter_async_context(writer.open())
        return self._writers[own.topic]


def _records_of(stream: Stream[T], values: Sequence[T]) -> tuple[list[bytes], list[bytes]]:
    """Return keys and encoded values. Raises `msgspec.ValidationError` for what the stream's producer would refuse."""
    encoded = [encode(value) for value in values]
    for one in encoded:
        stream.decode_strictly(one)
    try:
        keys = stream.keys_of(values)
    except NoKey as error:
        raise msgspec.ValidationError(str(error)) from error
    for key, one in zip(keys, encoded, strict=True):
        if fault := stream.fault_of(key, one):
            raise msgspec.ValidationError(fault)
    return keys, encoded
