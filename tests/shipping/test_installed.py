"""What ships, in an environment that holds nothing else: needs the package registry."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from services import wait_until

from tools.ports import free_ports

ROOT = Path(__file__).parents[2]
NO_KAFKA = "127.0.0.1:1"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an environment with the wheel: the one that `just sbom` tells of."""
    folder = tmp_path_factory.mktemp("shipped")
    subprocess.run(["just", "install-wheel", str(folder)], cwd=ROOT, check=True)
    return folder / "environment"


@contextmanager
def running(installed: Path, service: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a service from an empty folder, without a Kafka, and yield it and its address."""
    (port,) = free_ports(1)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "KAFKA", "VIRTUAL"))}
    environment = clean | {f"{service.upper()}_PORT": str(port), "KAFKA_BOOTSTRAP_SERVERS": NO_KAFKA}
    command = [str(installed / "bin" / "python"), "-m", f"apps.{service}"]
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    ("service", "pages"), [("producer", ["/schema", "/asyncapi"]), ("consumer", ["/", "/schema", "/asyncapi"])]
)
def test_the_wheel_runs_each_service_with_nothing_else_than_what_it_asks_for(
    installed: Path, service: str, pages: list[str], tmp_path: Path
) -> None:
    with running(installed, service, tmp_path) as (process, address):
        wait_until(lambda: process.poll() is not None or answers(f"{address}/livez"))
        assert process.poll() is None, process.communicate()[1]
        for page in pages:
            assert answers(f"{address}{page}")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_what_the_environment_holds_is_what_the_lock_file_names(installed: Path) -> None:
    command = ["uv", "pip", "freeze", "--python", str(installed / "bin" / "python")]
    frozen = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    locked = set(re.findall(r"(?m)^(\S+==[^\s;]+)", (ROOT / "requirements.lock").read_text()))
    assert {line for line in frozen if not line.startswith("people-over-kafka")} <= locked
