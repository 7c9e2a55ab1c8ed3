import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from fuzzing import KEY, KEYS, Fuzzing, Services, fuzzed
from services import Service

from apps.chassis.http.api_keys import HEADER

FOLDER = Path(__file__).parent
MANY = 50
"""Calls of each operation from which on a run is a long one."""
NO_KEYS: Mapping[str, str] = MappingProxyType({})
BOTH = pytest.mark.parametrize("name", ["producer", "consumer"])


@pytest.fixture(scope="module")
def open_services(bootstrap_servers: str, logs: Path, fuzzing: Fuzzing) -> Iterator[Services]:
    """Both services as they are without a key."""
    if fuzzing.examples < MANY:
        pytest.skip("calls without a key take as long again: `just fuzz` makes them")
    yield from fuzzed(bootstrap_servers, logs)


@BOTH
def test_every_documented_call_answers_as_documented_whatever_it_is_sent_and_to_its_role_alone(
    name: str, services: Services, fuzzing: Fuzzing, tmp_path: Path
) -> None:
    assert_as_documented(getattr(services, name), fuzzing, tmp_path, "--header", f"{HEADER}: {KEY}", keys=KEYS)


@BOTH
def test_every_documented_call_answers_as_documented_where_no_key_is_needed(
    name: str, open_services: Services, fuzzing: Fuzzing, tmp_path: Path
) -> None:
    assert_as_documented(getattr(open_services, name), fuzzing, tmp_path)


def assert_as_documented(
    service: Service, fuzzing: Fuzzing, folder: Path, *more: str, keys: Mapping[str, str] = NO_KEYS
) -> None:
    """Call a service as Schemathesis does, with every check that it has; some calls also with the key of each role."""
    address = f"http://127.0.0.1:{service.port}/schema/openapi.json"
    amount = ["--max-examples", str(fuzzing.examples), "--seed", str(fuzzing.seed)]
    done = subprocess.run(
        [_program(), "--config-file", FOLDER / "schemathesis.toml", "--no-color", "run", address, *amount, *more],
        cwd=folder,
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(FOLDER / "hooks.py"), "KEYS": json.dumps(keys)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert service.answers("/livez", 200)


def _program() -> Path:
    return Path(sys.executable).with_name("schemathesis")
