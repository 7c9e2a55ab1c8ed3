"""What the consumer's subscriber replaces in FastStream's `BatchSubscriber`: a PROTECTION.

FastStream makes its own class of subscriber and polls by itself, so the class of an instance is changed. Reaches for
its poll, its processing of a batch, its lock, its tasks and its listener. No upstream issue is known.

Lost without it:

- The consume loop survives positions that Kafka no longer has, and batches that cannot be read.
- A rebalance waits for the in-flight batch.
- Records do not wait after an empty poll for as long as that poll took.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from aiokafka import AIOKafkaConsumer
from faststream.kafka.subscriber.usecase import BatchSubscriber

REACHES = (
    "faststream.kafka.subscriber.usecase:BatchSubscriber.get_msg(consumer)",
    "faststream.kafka.subscriber.usecase:BatchSubscriber.process_message(msg)",
    "faststream.kafka.subscriber.usecase:BatchSubscriber.batch_timeout_ms",
    "faststream.kafka.subscriber.usecase:LogicSubscriber.__init__ uses _listener, consumer",
    "faststream._internal.endpoint.subscriber.mixins:TasksMixin.__init__ uses tasks",
    "faststream._internal.endpoint.subscriber.usecase:SubscriberUsecase.start uses lock",
    "faststream._internal.endpoint.subscriber.utils:MultiLock.wait_release(timeout)",
    "faststream._internal.endpoint.subscriber.utils:MultiLock.empty",
)

Poll = Callable[[AIOKafkaConsumer], Awaitable[tuple[Any, ...]]]


def poll_by(subscriber: BatchSubscriber, poll: Poll, in_flight: Callable[[], AbstractContextManager[None]]) -> None:
    """Have a subscriber take its records from `poll`, and process a batch within `in_flight`, until its commit."""

    class PollingSubscriber(BatchSubscriber):
        __slots__ = ()

        async def get_msg(self, consumer: AIOKafkaConsumer) -> tuple[Any, ...]:
            return await poll(consumer)

        async def process_message(self, msg: tuple[Any, ...]) -> Any:  # noqa: ANN401 - FastStream's `Response`
            with in_flight():
                return await super().process_message(msg)

    subscriber.__class__ = PollingSubscriber


def locked(subscriber: BatchSubscriber | None) -> AbstractContextManager[object]:
    """Return the lock of a batch: `wait_for_batch` waits until it is released."""
    return subscriber.lock if subscriber is not None else nullcontext()


def is_in_flight(subscriber: BatchSubscriber) -> bool:
    """Return whether a batch of a started subscriber is being processed or committed."""
    return not subscriber.lock.empty  # type: ignore[attr-defined]  # a MultiLock once started


async def wait_for_batch(subscriber: BatchSubscriber, seconds: float) -> bool:
    """Wait until no batch is in flight; return False when one still is."""
    await subscriber.lock.wait_release(seconds)  # type: ignore[attr-defined]  # likewise
    return not is_in_flight(subscriber)


def why_ended(subscriber: BatchSubscriber) -> BaseException | str | None:
    """Return the error that ended the consume loop of a started subscriber, or None while it runs."""
    for task in subscriber.tasks:
        if task.done():
            return "cancelled" if task.cancelled() else task.exception() or "returned"
    return None
