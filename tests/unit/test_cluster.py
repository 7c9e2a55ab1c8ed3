"""What is told of a cluster that cannot be used names what is wrong with it."""

from typing import Any

import pytest
from aiokafka.errors import NodeNotReadyError

from apps.chassis.kafka import cluster as module
from apps.chassis.kafka.clients import ClientOptions, client_options
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.settings import Settings


@pytest.fixture
def options() -> ClientOptions:
    return client_options(Settings(), "consumer")


def test_a_partition_whose_leader_cannot_be_reached_is_told_with_the_reason(options: ClientOptions) -> None:
    cluster = Cluster(options, [])
    partition: dict[str, Any] = {"partition": 3, "leader": 2, "replicas": [1, 2], "isr": [1, 2]}
    described = {"topic": "events", "error_code": 0, "partitions": [partition]}
    assert cluster._trouble_of(described, {1}) == "topic events: partition 3 has no leader"
    options["client_id"].journal.failed(("connection", 2), "broker:9092 cannot be reached: connection refused")
    assert cluster._trouble_of(described, {1}) == (
        "topic events: partition 3 has no leader that answers: broker:9092 cannot be reached: connection refused"
    )


@pytest.mark.anyio
async def test_where_every_broker_lets_us_in_the_request_that_failed_is_told(
    options: ClientOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing_wrong(_: ClientOptions) -> None:
        return None

    monkeypatch.setattr(module, "diagnosis", nothing_wrong)
    cluster = Cluster(options, [])
    says = "Kafka at localhost:9092 answers with an error: "
    assert await cluster._out_of_reach(TimeoutError()) == f"{says}TimeoutError"
    options["client_id"].journal.failed(("Metadata", 1), "no answer to Metadata from broker:9092")
    assert await cluster._out_of_reach(NodeNotReadyError()) == f"{says}no answer to Metadata from broker:9092"
