import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing import Fuzzing, Services, fuzzed

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module", params=[None, "a-key-of-this-test"], ids=["open", "with a key"])
def key(request: pytest.FixtureRequest) -> str | None:
    """The key that is needed for whatever changes something."""
    found: str | None = request.param
    return found


@pytest.fixture(scope="module")
def services(bootstrap_servers: str, logs: Path, key: str | None) -> Iterator[Services]:
    yield from fuzzed(bootstrap_servers, logs, **({"API_KEY": key} if key else {}))


@pytest.mark.parametrize("name", ["producer", "consumer"])
def test_every_documented_call_answers_as_documented_whatever_it_is_sent(
    name: str, services: Services, key: str | None, fuzzing: Fuzzing, tmp_path: Path
) -> None:
    service = services.producer if name == "producer" else services.consumer
    address = f"http://127.0.0.1:{service.port}/schema/openapi.json"
    amount = ["--max-examples", str(fuzzing.examples), "--seed", str(fuzzing.seed)]
    header = ["--header", f"X-API-Key: {key}"] if key else []
    done = subprocess.run(
        [_program(), "--config-file", FOLDER / "schemathesis.toml", "--no-color", "run", address, *amount, *header],
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(FOLDER / "hooks.py")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert service.answers("/livez", 200)


def _program() -> Path:
    return Path(sys.executable).with_name("schemathesis")
