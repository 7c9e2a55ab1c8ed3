"""How long to fuzz and from which seed, and the services that are fuzzed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing import Fuzzing, Services
from services import Pipeline, both


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take how much is tried; the defaults are those of `just test`."""
    group = parser.getgroup("fuzzing")
    group.addoption("--fuzz-examples", type=int, default=5, help="calls of each operation")
    group.addoption("--fuzz-records", type=int, default=50_000, help="mutated records")
    group.addoption("--fuzz-seed", type=int, default=1, help="repeats a run")


@pytest.fixture(scope="session")
def fuzzing(request: pytest.FixtureRequest) -> Fuzzing:
    """What the command line says."""
    return Fuzzing(*(request.config.getoption(f"--fuzz-{name}") for name in Fuzzing._fields))


@pytest.fixture(scope="package")
def services(bootstrap_servers: str, logs: Path) -> Iterator[Services]:
    """Both services; at the end neither has ended, nor has a traceback in its log."""
    with Pipeline(bootstrap_servers, logs) as pipeline, both(pipeline) as (producer, consumer):
        yield Services(pipeline, producer, consumer)
        for service in (producer, consumer):
            assert service.process.poll() is None
            assert "Traceback" not in service.log.read_text()
