"""What the demo says when something is in its way, or when a service has ended."""

import signal
import socket
from http import HTTPStatus
from typing import Any

import pytest

from contracts.stream import Stream
from tests.event import Event
from tools.demo import RECORDS, DemoFailed, how_it_ended, refuse_taken, show_stream
from tools.ports import free_ports


def test_each_port_that_is_taken_is_named_with_its_own_variable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = [one.getsockname()[1] for one in (first, second)]
        with pytest.raises(DemoFailed) as refused:
            refuse_taken({"PRODUCER_PORT": ports[0], "FREE_PORT": free_ports(1)[0], "CONSUMER_PORT": ports[1]})
    lines = str(refused.value).splitlines()
    assert [line.partition(" is taken")[0] for line in lines] == [
        f"PRODUCER_PORT: port {ports[0]}",
        f"CONSUMER_PORT: port {ports[1]}",
    ]
    assert [line.rpartition(", or ")[2] for line in lines] == [
        "set PRODUCER_PORT to another port",
        "set CONSUMER_PORT to another port",
    ]


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (-signal.SIGKILL, "the consumer was killed by SIGKILL"),
        (-99, "the consumer was killed by signal 99"),
        (0, "the consumer has ended with status 0"),
        (1, "the consumer has ended with status 1; its last line above says why"),
    ],
)
def test_a_service_that_was_killed_is_not_said_to_have_said_why(status: int, line: str) -> None:
    assert how_it_ended("consumer", status) == line


@pytest.mark.parametrize("refused", [0, 4, RECORDS])
def test_made_up_records_that_the_handler_refuses_are_counted_and_not_waited_for(
    capsys: pytest.CaptureFixture[str], refused: int
) -> None:
    counts = {"messages_consumed_count": 7, "dead_lettered_count": 2, "last_error": "cancelled"}
    value = {"id": "a", "number": 1, "text": "b"}

    def call_producer(_method: str, _target: str) -> tuple[int, Any]:
        counts.update(messages_consumed_count=7 + RECORDS - refused, dead_lettered_count=2 + refused)
        return HTTPStatus.CREATED, []

    def call_consumer(_method: str, target: str) -> tuple[int, Any]:
        listed = int(target.rpartition("limit=")[2]) if "limit=" in target else 0
        messages = [{"value": value, "partition": 0, "offset": offset} for offset in range(listed)]
        return HTTPStatus.OK, {"streams": {"events": dict(counts)}, "messages": messages}

    show_stream(Stream("events", Event, key=lambda event: event.id), call_producer, call_consumer, {})
    shown = capsys.readouterr().out
    assert (f"{refused} of {RECORDS} made-up events were dead-lettered: cancelled" in shown) == bool(refused)
    assert shown.count("partition 0 offset") == RECORDS - refused
