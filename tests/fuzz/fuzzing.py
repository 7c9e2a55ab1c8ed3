"""What is fuzzed, and how much."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from services import Pipeline, Service, both

KEY = "a-key-of-these-tests"
"""A key with all roles."""
KEYS = {role: f"a-key-that-may-{role}" for role in ("send", "read", "operate")}
"""A key for each role that a call needs."""


class Fuzzing(NamedTuple):
    """How much is tried: calls of each operation, and records; a seed repeats a run."""

    examples: int
    records: int
    seed: int


class Services(NamedTuple):
    """Both services, on a topic of their own."""

    pipeline: Pipeline
    producer: Service
    consumer: Service


def fuzzed(bootstrap_servers: str, logs: Path, **environment: str) -> Iterator[Services]:
    """Run both services; at the end neither has ended, nor has a traceback in its log."""
    with Pipeline(bootstrap_servers, logs) as pipeline, both(pipeline, **environment) as (producer, consumer):
        yield Services(pipeline, producer, consumer)
        for service in (producer, consumer):
            assert service.process.poll() is None
            assert "Traceback" not in service.log.read_text()
