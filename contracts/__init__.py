"""The message types that the services carry, and how their records look on a topic. Data only: no I/O."""

from typing import Any

from contracts.person import PEOPLE
from contracts.stream import Stream

STREAMS: tuple[Stream[Any], ...] = (PEOPLE,)
"""The streams that both services serve."""

PROJECT = "people-over-kafka"
"""The name of the installed package, as in `pyproject.toml`."""
