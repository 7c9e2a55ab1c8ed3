"""One producer after another keeps its id in a higher epoch, as long as Kafka is the same."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.transaction import InitProducerIdRequest

from apps.chassis.internals.producer_epochs import LAST_EPOCH, AnotherKafka, ProducerEpochs, ProducerOfClient, Send

pytestmark = pytest.mark.anyio
IDEMPOTENT = InitProducerIdRequest(None, 0)
TRANSACTIONAL = InitProducerIdRequest("redrive", 60_000)
PRODUCE = SimpleNamespace(batch="a batch")


class Kafka:
    """A Kafka that gives out ids, with what tells it from another one."""

    def __init__(self) -> None:
        self.cluster: str | None = "one"
        self.topic = UUID(int=1)
        self.epoch = self.error_code = self.given = 0
        self.written: list[object] = []
        self.too_old: Exception | None = None

    async def send(self, request: Any) -> Any:  # noqa: ANN401 - of aiokafka
        if request is PRODUCE:
            self.written.append(request)
            return "written"
        if isinstance(request, InitProducerIdRequest):
            self.given += 1
            answer = {"producer_id": self.given, "producer_epoch": self.epoch, "error_code": self.error_code}
            return SimpleNamespace(**answer)
        if self.too_old:
            raise self.too_old
        described = {"cluster_id": self.cluster, "topics": [{"topic_id": self.topic, "error_code": 0}]}
        return SimpleNamespace(to_object=lambda: described)


class Connection:
    """One connection to Kafka."""


@pytest.fixture
def kafka() -> Kafka:
    return Kafka()


@pytest.fixture
def send(kafka: Kafka) -> Send:
    return kafka.send


@pytest.fixture
def epochs() -> ProducerEpochs:
    return ProducerEpochs("events")


async def begun(epochs: ProducerEpochs, send: Send, request: InitProducerIdRequest = IDEMPOTENT) -> tuple[int, int]:
    answer, _ = await epochs.begin(request, send)
    return answer.producer_id, answer.producer_epoch


async def test_a_later_producer_keeps_the_id_in_the_next_epoch(epochs: ProducerEpochs, send: Send) -> None:
    assert [await begun(epochs, send) for _ in range(3)] == [(1, 0), (1, 1), (1, 2)]


def another_cluster(kafka: Kafka) -> None:
    kafka.cluster = "two"


def unnamed_cluster(kafka: Kafka) -> None:
    kafka.cluster = None


def another_topic(kafka: Kafka) -> None:
    kafka.topic = UUID(int=2)


def no_topic(kafka: Kafka) -> None:
    kafka.topic = UUID(int=0)


def too_old(kafka: Kafka) -> None:
    kafka.too_old = NotImplementedError()


def incompatible(kafka: Kafka) -> None:
    kafka.too_old = IncompatibleBrokerVersion()


ELSEWHERE = [another_cluster, unnamed_cluster, another_topic, no_topic, too_old, incompatible]


@pytest.mark.parametrize("becomes", ELSEWHERE)
async def test_a_producer_asks_for_a_new_id_where_kafka_may_be_another_one(
    epochs: ProducerEpochs, send: Send, kafka: Kafka, becomes: Callable[[Kafka], None]
) -> None:
    await begun(epochs, send)
    becomes(kafka)
    assert await begun(epochs, send) == (2, 0)


async def test_producers_that_write_to_any_topic_have_ids_of_their_own(send: Send) -> None:
    assert [await begun(ProducerEpochs(), send) for _ in range(2)] == [(1, 0), (2, 0)]


async def test_a_producer_asks_for_a_new_id_after_the_last_epoch(
    epochs: ProducerEpochs, send: Send, kafka: Kafka
) -> None:
    kafka.epoch = LAST_EPOCH - 1
    assert [await begun(epochs, send) for _ in range(3)] == [(1, LAST_EPOCH - 1), (1, LAST_EPOCH), (2, LAST_EPOCH - 1)]


async def test_a_refused_request_gives_no_id_to_a_later_producer(
    epochs: ProducerEpochs, send: Send, kafka: Kafka
) -> None:
    kafka.error_code = 31
    await begun(epochs, send)
    kafka.error_code = 0
    assert await begun(epochs, send) == (2, 0)


async def test_a_transactional_producer_is_left_to_kafka(epochs: ProducerEpochs, send: Send) -> None:
    assert [await begun(epochs, send, TRANSACTIONAL) for _ in range(2)] == [(1, 0), (2, 0)]


@pytest.mark.parametrize("becomes", [another_cluster, another_topic, no_topic])
async def test_a_producer_writes_nothing_by_a_connection_to_another_kafka(
    epochs: ProducerEpochs, send: Send, kafka: Kafka, becomes: Callable[[Kafka], None]
) -> None:
    producer, connection = ProducerOfClient(epochs), Connection()
    await producer.send(IDEMPOTENT, send, lambda: connection)
    assert await producer.send(PRODUCE, send, lambda: connection) == "written"
    becomes(kafka)
    assert await producer.send(PRODUCE, send, lambda: connection) == "written"  # the same Kafka answers there
    new = Connection()
    for _ in range(2):
        with pytest.raises(AnotherKafka):
            await producer.send(PRODUCE, send, lambda: new)
    assert kafka.written == [PRODUCE, PRODUCE]


async def test_a_connection_that_is_gone_once_it_was_checked_ends_no_producer(
    epochs: ProducerEpochs, send: Send, kafka: Kafka
) -> None:
    producer = ProducerOfClient(epochs)
    await producer.send(IDEMPOTENT, send, Connection)
    assert await producer.send(PRODUCE, send, lambda: None) == "written"
    assert kafka.written == [PRODUCE]
