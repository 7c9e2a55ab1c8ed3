"""How long to fuzz and from which seed, and the services that are fuzzed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing import KEY, KEYS, Fuzzing, Services, fuzzed


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take how much is tried; the defaults are those of `just test`."""
    group = parser.getgroup("fuzzing")
    group.addoption("--fuzz-examples", type=int, default=2, help="calls of each operation")
    group.addoption("--fuzz-records", type=int, default=10_000, help="mutated records")
    group.addoption("--fuzz-seed", type=int, default=1, help="repeats a run")


@pytest.fixture(scope="session")
def fuzzing(request: pytest.FixtureRequest) -> Fuzzing:
    """What the command line says."""
    return Fuzzing(*(request.config.getoption(f"--fuzz-{name}") for name in Fuzzing._fields))


@pytest.fixture(scope="package")
def services(bootstrap_servers: str, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Both services, which need a key with the role of each call."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("".join(f"{role}r:{key} roles={role}\n" for role, key in KEYS.items()))
    yield from fuzzed(bootstrap_servers, logs, API_KEY=KEY, API_KEY_FILE=str(file))
