"""How long to fuzz and from which seed, and the services that are fuzzed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing import KEY, Fuzzing, Services, fuzzed


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
def services(bootstrap_servers: str, logs: Path) -> Iterator[Services]:
    """Both services, which need a key for each change."""
    yield from fuzzed(bootstrap_servers, logs, API_KEY=KEY)
