"""A member of the newer consumer protocol (KIP-848), which aiokafka does not know, is shown as it is."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from services import Pipeline, wait_until

from tools.kafka_distribution import distribution

MEMBER = Path(__file__).with_name("NewerMember.java")


@contextmanager
def newer_member(pipeline: Pipeline) -> Iterator[None]:
    """Run Kafka's own client in Java, from its source."""
    java = shutil.which("java")
    if java is None or shutil.which("javac") is None:
        pytest.skip("there is no Java compiler, which a member of the newer protocol takes")
    jars = distribution().java[-1]
    command = [java, "-cp", jars, str(MEMBER), pipeline.bootstrap_servers, pipeline.topic, pipeline.group]
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
