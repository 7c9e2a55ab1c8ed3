"""One producer after another keeps its id in a higher epoch, as long as Kafka is the same."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.protocol.transaction import InitProducerIdRequest

from apps.chassis.internals.producer_epochs import LAST_EPOCH, ProducerEpochs, Send

pytestmark = pytest.mark.anyio
IDEMPOTENT = InitProducerIdRequest(None, 0)
TRANSACTIONAL = InitProducerIdRequest("redrive", 60_000)


@pytest.fixture
def kafka() -> SimpleNamespace:
    """A Kafka with the name of its cluster, the epoch and the error of its answers, and the ids that it gave out."""
    return SimpleNamespace(cluster="one", epoch=0, error_code=0, given=0)


@pytest.fixture
def send(kafka: SimpleNamespace) -> Send:
    async def send(request: Any) -> Any:  # noqa: ANN401 - of aiokafka
        if not isinstance(request, InitProducerIdRequest):
            return SimpleNamespace(cluster_id=kafka.cluster)
        kafka.given += 1
        answer = {"producer_id": kafka.given, "producer_epoch": kafka.epoch, "error_code": kafka.error_code}
        return SimpleNamespace(**answer)

    return send


@pytest.fixture
def epochs() -> ProducerEpochs:
    return ProducerEpochs()


async def begun(epochs: ProducerEpochs, send: Send, request: InitProducerIdRequest = IDEMPOTENT) -> tuple[int, int]:
    answer = await epochs.begin(request, send)
    return answer.producer_id, answer.producer_epoch


async def test_a_later_producer_keeps_the_id_in_the_next_epoch(epochs: ProducerEpochs, send: Send) -> None:
    assert [await begun(epochs, send) for _ in range(3)] == [(1, 0), (1, 1), (1, 2)]


def another_kafka(kafka: SimpleNamespace) -> None:
    kafka.cluster = "two"


def unnamed_kafka(kafka: SimpleNamespace) -> None:
    kafka.cluster = None


@pytest.mark.parametrize("becomes", [another_kafka, unnamed_kafka])
async def test_a_producer_asks_for_a_new_id_where_kafka_may_be_another_one(
    epochs: ProducerEpochs, send: Send, kafka: SimpleNamespace, becomes: Callable[[SimpleNamespace], None]
) -> None:
    await begun(epochs, send)
    becomes(kafka)
    assert await begun(epochs, send) == (2, 0)


async def test_a_producer_asks_for_a_new_id_after_the_last_epoch(
    epochs: ProducerEpochs, send: Send, kafka: SimpleNamespace
) -> None:
    kafka.epoch = LAST_EPOCH - 1
    assert [await begun(epochs, send) for _ in range(3)] == [(1, LAST_EPOCH - 1), (1, LAST_EPOCH), (2, LAST_EPOCH - 1)]


async def test_a_refused_request_gives_no_id_to_a_later_producer(
    epochs: ProducerEpochs, send: Send, kafka: SimpleNamespace
) -> None:
    kafka.error_code = 31
    await begun(epochs, send)
    kafka.error_code = 0
    assert await begun(epochs, send) == (2, 0)


async def test_a_transactional_producer_is_left_to_kafka(epochs: ProducerEpochs, send: Send) -> None:
    assert [await begun(epochs, send, TRANSACTIONAL) for _ in range(2)] == [(1, 0), (2, 0)]
