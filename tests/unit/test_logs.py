import json
import logging

import pytest
from aiokafka.errors import ProducerClosed

from apps.chassis.logs import JsonFormatter, is_worth_a_line, one_line


def line(message: str, error: Exception | None = None) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, None)
    return logging.LogRecord("asyncio", logging.ERROR, "", 0, message, (), exc_info)


def test_a_line_of_json_says_when_how_grave_who_and_what() -> None:
    said = json.loads(JsonFormatter().format(line('a "quoted" word')))
    assert said.pop("time").endswith("+00:00")
    assert said == {"level": "ERROR", "logger": "asyncio", "message": 'a "quoted" word'}


def test_an_error_is_part_of_its_line_of_json() -> None:
    said = json.loads(JsonFormatter().format(line("failed", ValueError("why"))))
    assert "ValueError: why" in said["exception"]


@pytest.mark.parametrize(
    ("message", "error", "worth"),
    [
        ("Future exception was never retrieved", ProducerClosed(), False),
        ("Exception in callback <bound method Sender._fail_all of <aiokafka.producer.sender.Sender>>", None, False),
        ("Task exception was never retrieved", ValueError("ours"), True),
        ("Exception in callback Connection.replace()", None, True),
    ],
)
def test_only_what_a_closed_producer_leaves_behind_is_passed_over(
    message: str, error: Exception | None, *, worth: bool
) -> None:
    assert is_worth_a_line(line(message, error)) is worth


def test_an_error_is_told_in_one_line_and_its_kind_once() -> None:
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(TimeoutError()) == "TimeoutError"
    assert one_line(ProducerClosed()) == "ProducerClosed"
