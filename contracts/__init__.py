"""What the services carry: the messages, and how they stand on their topics. Data only, without input or output."""

from typing import Any

from contracts.person import PEOPLE
from contracts.stream import Stream

STREAMS: tuple[Stream[Any], ...] = (PEOPLE,)
"""The streams of this pair."""

PROJECT = "people-over-kafka"
"""The name under which the services are installed, as in `pyproject.toml`."""
