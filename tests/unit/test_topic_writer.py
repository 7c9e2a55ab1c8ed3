import asyncio
from typing import Any

import pytest
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, UnknownTopicOrPartitionError
from samples import until

from apps.chassis.kafka.clients import client_options
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.topic_writer import TopicWriter
from apps.chassis.settings import Settings

pytestmark = pytest.mark.anyio


class Topics(Cluster):
    async def ensure_topics(self) -> None: ...


class Batch:
    """Holds two records."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []

    def append(self, *, key: bytes, **_: object) -> bool | None:
        if len(self.keys) == 2:
            return None
        self.keys.append(key)
        return True


class Producer:
    """Answers each batch with what `answers` says; without an answer it waits for one."""

    def __init__(self, answers: list[Exception | None]) -> None:
        self.answers = answers
        self.partitions = {0}
        self.sent: list[list[bytes]] = []
        self.waiting: list[asyncio.Future[None]] = []
        self.is_stopped = False

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.is_stopped = True

    async def partitions_for(self, _: str) -> set[int]:
        return self.partitions

    def create_batch(self) -> Batch:
        return Batch()

    async def send_batch(self, batch: Batch, _: str, *, partition: int) -> "asyncio.Future[None]":
        assert partition in self.partitions
        self.sent.append(batch.keys)
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.answers:
            error = self.answers.pop(0)
            answer.set_exception(error) if error else answer.set_result(None)
        else:
            self.waiting.append(answer)
        return answer


def writing(
    *producers: Producer, ack_timeout_s: float = 5, settle_s: float = 5, cluster: type[Cluster] = Topics
) -> TopicWriter:
    made = iter(producers)
    options = client_options(Settings(), "consumer")

    def new_producer(**_: Any) -> Producer:  # noqa: ANN401 - aiokafka's options
        return next(made)

    topics = cluster(options, [])
    return TopicWriter(
        options,
        "events",
        topics,
        new_producer,
        ack_timeout_s=ack_timeout_s,
        check_partitions_s=0.01,
        settle_s=settle_s,
    )


async def test_records_are_written_in_order_in_as_many_batches_as_they_need() -> None:
    producer = Producer([None, None])
    writer = writing(producer)
    async with writer.open():
        await writer.write([b"1", b"2", b"3"], [b"", b"", b""])
    assert producer.sent == [[b"1", b"2"], [b"3"]]
    assert producer.is_stopped


async def test_a_batch_that_is_not_acknowledged_raises_and_the_next_write_takes_another_producer() -> None:
    first, second = Producer([None, MessageSizeTooLargeError()]), Producer([None])
    writer = writing(first, second)
    with pytest.raises(KafkaError):
        await writer.write([b"1", b"2", b"3"], [b"", b"", b""])
    assert first.is_stopped, "its sequence numbers have a gap"
    await writer.write([b"4"], [b""])
    assert second.sent == [[b"4"]]


async def test_a_write_returns_only_once_all_is_acknowledged_and_gives_up_after_its_time() -> None:
    first, second = Producer([]), Producer([None])
    writer = writing(first, second, ack_timeout_s=0.01)
    with pytest.raises(TimeoutError):
        await writer.write([b"1"], [b""])
    assert first.is_stopped
    await writer.write([b"1"], [b""])


async def test_what_is_written_to_a_partition_that_is_gone_is_given_up_and_written_to_one_that_is_there() -> None:
    first, second = Producer([]), Producer([None])
    first.partitions = {0, 1, 2}
    writer = writing(first, second)
    waiting = asyncio.create_task(writer.write_to({5: [(b"key", b"", ())]}))
    await until(lambda: first.sent)
    first.partitions = {0}
    with pytest.raises(UnknownTopicOrPartitionError):
        await waiting
    await writer.write_to({5: [(b"key", b"", ())]})
    assert second.sent == [[b"key"]]


async def test_a_write_that_fails_late_does_not_close_the_producer_of_a_newer_one() -> None:
    first, second = Producer([]), Producer([None])
    writer = writing(first, second)
    late = asyncio.create_task(writer.write([b"1"], [b""]))
    await until(lambda: first.sent)
    first.answers.append(MessageSizeTooLargeError())
    with pytest.raises(KafkaError):
        await writer.write([b"2"], [b""])
    await writer.write([b"3"], [b""])
    late.cancel()
    await asyncio.wait([late])
    assert (first.is_stopped, second.is_stopped) == (True, False)


async def test_a_value_that_is_too_large_is_refused_with_its_size_and_fails_no_concurrent_write() -> None:
    """A handler of `@each` publishes for many records at once: Kafka's own refusal cost all of them their producer."""
    producer = Producer([])
    writer = writing(producer)
    other = asyncio.create_task(writer.write([b"1"], [b"small"]))
    await until(lambda: producer.sent)
    with pytest.raises(MessageSizeTooLargeError, match=r"needs 20000\d\d bytes, and the topic takes 1048588"):
        await writer.write([b"2", b"3"], [b"small", bytes(2_000_000)])
    assert not producer.is_stopped
    assert producer.sent == [[b"1"]], "not even the small one of the same call"
    other.cancel()
    await asyncio.wait([other])


async def test_a_value_that_its_topic_takes_by_now_is_written() -> None:
    """Its settings are read when a producer is made: without another look, redriven letters failed until a restart."""

    class Growing(Topics):
        async def check_settings(self) -> None:
            self.configs["events"] = {"max.message.bytes": "3000000"}

    producer = Producer([None])
    await writing(producer, cluster=Growing).write([b"large"], [bytes(2_000_000)])
    assert producer.sent == [[b"large"]]


async def cancelled_write(writer: TopicWriter, producer: Producer) -> asyncio.Future[None]:
    """Cancel a write whose batch was handed over; return the answer that the client still waits for."""
    write = asyncio.create_task(writer.write([b"cancelled"], [b""]))
    await until(lambda: producer.waiting)
    write.cancel()
    await asyncio.wait([write])
    return producer.waiting.pop()


async def test_a_write_that_its_caller_cancels_costs_no_other_its_producer() -> None:
    """A handler that publishes under a task group or a timeout cancels its writes when something else of it fails."""
    producer = Producer([])
    writer = writing(producer)
    late = await cancelled_write(writer, producer)
    other = asyncio.create_task(writer.write([b"other"], [b""]))
    await until(lambda: producer.waiting)
    late.set_result(None)
    producer.waiting.pop().set_result(None)
    await other
    producer.answers.append(None)
    await writer.write([b"next"], [b""])
    assert producer.sent == [[b"cancelled"], [b"other"], [b"next"]]
    assert not producer.is_stopped


async def test_a_producer_that_does_not_write_what_was_cancelled_is_replaced() -> None:
    """It would write it behind newer records: those of another instance, when the group took the partition away."""
    failing, silent, last = Producer([]), Producer([]), Producer([None])
    writer = writing(failing, silent, last, settle_s=0.01)
    (await cancelled_write(writer, failing)).set_exception(MessageSizeTooLargeError())
    await until(lambda: failing.is_stopped)
    await cancelled_write(writer, silent)
    await until(lambda: silent.is_stopped)
    await writer.write([b"next"], [b""])
    assert last.sent == [[b"next"]]
