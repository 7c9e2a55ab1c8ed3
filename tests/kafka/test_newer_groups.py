"""Members of newer protocols (KIP-848, KIP-932), which aiokafka does not know, are shown as they are."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from services import Pipeline, wait_until

from apps.chassis.kafka.clients import client_options
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.settings import Settings
from tools.kafka_distribution import distribution

MEMBER = Path(__file__).with_name("NewerMember.java")
SHORT_LIVED = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""Options of Java for a process that ends before anything else would pay."""


@contextmanager
def newer_member(pipeline: Pipeline, *share: str) -> Iterator[None]:
    """Run Kafka's own client in Java, from its source; with "share" as a member of a share group."""
    java = shutil.which("java")
    if java is None or shutil.which("javac") is None:
        pytest.skip("there is no Java compiler, which a member of the newer protocol takes")
    program = [java, *SHORT_LIVED, "-cp", distribution().java[-1], str(MEMBER)]
    command = [*program, pipeline.bootstrap_servers, pipeline.topic, pipeline.group, *share]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield
        finally:
            process.communicate(b"\n", timeout=30)


def test_a_group_with_a_member_of_the_newer_protocol_is_shown_as_kafka_has_it(pipeline: Pipeline) -> None:
    with pipeline.consumer() as consumer:
        consumer.until_healthy()
        consumer.post("/consumers/stop")
        pipeline.fill(50)
        with newer_member(pipeline):
            wait_until(lambda: consumer.get("/consumers/group")["members"], what="for the member to be shown")
            wait_until(lambda: consumer.get("/consumers/group")["members"][0]["partitions"] == list(range(6)))
            group = consumer.get("/consumers/group")
            assert group["state"] == "Stable"
            (member,) = group["members"]
            assert member["client_id"] == "newer"
            assert {partition["owner"] for partition in group["partitions"]} == {member["member_id"]}
            wait_until(lambda: consumer.get("/consumers/group")["lag"] == consumer.status()["lag"] == 0)


def test_an_id_that_a_share_group_has_is_not_called_dead(pipeline: Pipeline) -> None:
    options = client_options(Settings(kafka_bootstrap_servers=pipeline.bootstrap_servers), "consumer")
    pipeline.create_topic(1)

    async def described() -> tuple[str, int]:
        cluster = Cluster(options, [])
        async with cluster.open():
            state, members = await cluster.members(pipeline.group, pipeline.topic)
        return state, len(members)

    assert asyncio.run(described()) == ("Dead", 0)
    with newer_member(pipeline, "share"):
        told = ("Stable share group: its members cannot be told", 0)
        wait_until(lambda: asyncio.run(described()) == told, what="for the share group to be told")
