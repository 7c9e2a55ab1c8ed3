"""Calls that are made without Litestar's steps around their handler are answered as all others."""

import gc
from collections.abc import Iterator

import pytest
from litestar.testing import TestClient
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from apps.chassis.settings import Settings
from tests.event_services import create_producer

WRONG = b'{"no": "event"}'
SEND = "/producers/events"


def failures_in(metrics: str) -> float:
    """Return how many calls failed to authenticate."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "authentication_failures_total"
    )
