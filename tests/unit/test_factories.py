"""Other servers run the applications by their factories; `python -m` is what production runs."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from services import NO_TLS, wait_until

from contracts import STREAMS
from tools.ports import free_ports

pytestmark = pytest.mark.slow  # each starts a Python that imports a service

ROOT = Path(__file__).parents[2]
WARNING = "run `python -m apps.producer` or `apps.consumer` in production"
PARTITIONS = STREAMS[0].variables("partitions")[0]
SERVERS = {
    "uvicorn": ("uvicorn", "--factory", "apps.{service}.app:create_app", "--port", "{port}"),
    "litestar": ("litestar", "--app", "apps.{service}.app:create_app", "run", "--port", "{port}"),
}


def command(server: str, service: str, port: int) -> list[str]:
    return [sys.executable, "-m", *(part.format(service=service, port=port) for part in SERVERS[server])]


def environment(**variables: str) -> dict[str, str]:
    given = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }  # or it compiles all
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**given, "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "PYTHONPATH": path, **variables}


def answers(address: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(address, verify=NO_TLS).is_success
    return False


@pytest.mark.parametrize(("server", "service"), [("uvicorn", "consumer"), ("litestar", "producer")])
def test_a_server_that_knows_factories_runs_a_service_and_says_what_it_lacks(
    server: str, service: str, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    started: Sequence[str] = command(server, service, port)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(started, cwd=tmp_path, env=environment(), stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/livez"), 30, "for an answer")
        assert httpx.get(f"http://127.0.0.1:{port}/health-check").status_code == 503
        assert httpx.get(f"http://127.0.0.1:{port}/livez", headers={"Host": "evil.example"}).status_code == 421
        assert (tmp_path / "log").read_text().count(WARNING) == 1
    finally:
        process.terminate()
        process.wait(15)


def test_litestar_writes_the_openapi_document_of_a_service_to_a_file(tmp_path: Path) -> None:
    file = tmp_path / "openapi.json"
    options = ["--app", "apps.producer.app:create_app", "schema", "openapi", "--output", str(file)]
    command = [sys.executable, "-m", "litestar", *options]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), check=True, capture_output=True, text=True)
    assert WARNING not in done.stdout + done.stderr  # no server starts
    assert f"/producers/{STREAMS[0].name}" in json.loads(file.read_text())["paths"]


def test_a_wrong_setting_stops_the_start_there_too_with_one_line_that_names_it(tmp_path: Path) -> None:
    wrong = environment(**{PARTITIONS: "six"})
    done = subprocess.run(
        command("uvicorn", "producer", 1),
        cwd=tmp_path,
        env=wrong,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert f"{PARTITIONS}: expected a whole number" in done.stderr
    assert "Traceback" not in done.stderr
