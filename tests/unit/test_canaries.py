import logging
import re
from importlib import import_module

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.producer.message_accumulator import BatchBuilder
from prometheus_client import CollectorRegistry

from apps.chassis.internals.canary import REACH, UnexpectedLibrary, part_of
from apps.chassis.internals.protections import REACHES, protect
from apps.chassis.service import settings_from_environment
from apps.producer.publishing.transport import accelerated, choose_transport, publish


def something_else() -> None:
    pass


def test_a_process_can_be_protected_twice() -> None:
    protect()
    protect()


@pytest.mark.parametrize("reach", REACHES)
def test_a_protection_whose_library_has_changed_stops_the_start_with_one_line(
    reach: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.fullmatch(REACH, reach)
    assert found is not None
    owner, _, name = found["path"].rpartition(".")
    holder = part_of(found["module"], owner) if owner else import_module(found["module"])
    if found["parameters"] or found["attributes"]:
        monkeypatch.setattr(holder, name, something_else)
    else:
        monkeypatch.delattr(holder, name)
    with pytest.raises(UnexpectedLibrary) as raised:
        protect()
    assert re.fullmatch(
        r"(Python|aiokafka|faststream|uvicorn) [0-9.]+: expected .*: install the pinned version", str(raised.value)
    )


def test_a_process_that_cannot_be_protected_ends_with_that_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AIOKafkaClient, "_metadata_update", something_else)
    with pytest.raises(SystemExit, match=r"^aiokafka .*_metadata_update"):
        settings_from_environment()


@pytest.mark.parametrize("broken", [False, True])
def test_the_accelerator_is_used_unless_its_client_has_changed(
    broken: bool,  # noqa: FBT001 - the parameter of a test
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if broken:
        monkeypatch.setattr(BatchBuilder, "append", something_else)
    registry = CollectorRegistry()
    with caplog.at_level(logging.WARNING):
        send = choose_transport("on", registry)
    assert send is (publish if broken else accelerated)
    assert registry.get_sample_value("accelerators_active", {"accelerator": "client_batch"}) == (0 if broken else 1)
    assert len(caplog.messages) == (1 if broken else 0)
    assert all("BatchBuilder.append" in line for line in caplog.messages)


def test_an_operator_can_switch_the_accelerators_off(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    assert choose_transport("off", registry) is publish
    assert registry.get_sample_value("accelerators_active", {"accelerator": "client_batch"}) == 0
    assert "ACCELERATORS is off" in caplog.text
