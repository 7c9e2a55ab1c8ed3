"""What is fuzzed, and how much."""

from typing import NamedTuple

from services import Pipeline, Service


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
