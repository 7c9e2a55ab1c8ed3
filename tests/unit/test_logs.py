import gc
import io
import json
import logging
import os
import pty
import select
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO, Literal, NoReturn, TextIO

import msgspec
import pytest
from aiokafka.conn import collect_hosts
from aiokafka.errors import (
    CorruptRecordException,
    GroupCoordinatorNotAvailableError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerClosed,
)
from samples import LONG, Stored

from apps.chassis.background import Background
from apps.chassis.observability.log_output import LogOutput
from apps.chassis.observability.logs import (
    UNCAUGHT,
    ClientLines,
    ConsoleFormatter,
    JsonFormatter,
    is_worth_logging,
    one_line,
    request_id,
    set_up_logging,
    stack_of,
    with_request,
)
from apps.chassis.settings import Settings
from contracts.record import fields_of
from tests.fakes import Clock

ADA_HERSELF = "Ada Lovelace"
"""Whom an exception quotes, and no log may."""


def line(message: str, error: BaseException | None = None, **fields: Any) -> logging.LogRecord:  # noqa: ANN401 - of any field
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("asyncio", logging.ERROR, "", 0, message, (), exc_info)
    vars(record).update(fields)
    return record


def failure() -> Exception:
    """Return an error that was raised, and that another one led to."""

    def look_up(name: str) -> NoReturn:
        raise KeyError(name)

    try:
        look_up(ADA_HERSELF)
    except KeyError as cause:
        error = ValueError(f"nobody is called {cause}")
        error.__cause__ = cause
        return error


def test_a_line_of_json_says_when_how_grave_who_and_what() -> None:
    said = json.loads(JsonFormatter().format(line('a "quoted" word')))
    assert said.pop("time").endswith("+00:00")
    assert said == {"level": "ERROR", "logger": "asyncio", "message": 'a "quoted" word'}


def test_a_line_of_json_has_the_place_of_a_record_in_fields() -> None:
    said = json.loads(
        JsonFormatter().format(line("bad", None, **fields_of(Stored(partition=0, offset=7)), event=ADA_HERSELF))
    )
    assert (said["topic"], said["partition"], said["offset"]) == ("events", 0, 7)
    assert "event" not in said


def test_a_line_of_json_reports_the_stack_of_an_error_and_of_those_before_it_but_not_what_they_quote() -> None:
    said = json.loads(JsonFormatter().format(line("failed", failure())))["exception"]
    assert ADA_HERSELF not in said
    assert said.index("in look_up") < said.index("\nKeyError\n") < said.index("\nValueError")


def test_a_line_for_events_reports_the_same_of_an_error() -> None:
    said = ConsoleFormatter().format(line("failed", failure()))
    assert ADA_HERSELF not in said
    assert "failed\nTraceback" in said
    assert "in look_up" in said


def test_what_kafka_says_is_reported_with_an_error_of_its_client() -> None:
    assert stack_of(MessageSizeTooLargeError("5 bytes")).endswith("MessageSizeTooLargeError: 5 bytes")


def test_of_a_long_chain_of_errors_the_last_ten_are_reported() -> None:
    error: Exception | None = None
    for number in range(100):
        error, before = ValueError(number), error
        error.__cause__ = before
    assert error is not None
    assert stack_of(error).count("Traceback") == 10


@pytest.mark.anyio
async def test_what_runs_in_the_background_belongs_to_no_request_whoever_began_it() -> None:
    seen: list[str | None] = []

    async def work() -> None:
        seen.append(request_id.get())

    background, token = Background(), request_id.set("abc-123")
    try:
        async with background.open():
            await background.start(work(), "work")
    finally:
        request_id.reset(token)
    assert seen == [None]


@pytest.mark.parametrize("formatter", [ConsoleFormatter(), JsonFormatter()])
def test_a_line_names_the_request_that_it_is_of(formatter: logging.Formatter) -> None:
    token = request_id.set("abc-123")
    try:
        record = line("failed")
        assert with_request(record)
        assert "abc-123" in formatter.format(record)
    finally:
        request_id.reset(token)
    record = line("failed")
    with_request(record)
    assert "request" not in formatter.format(record)


@pytest.mark.parametrize("formatter", [ConsoleFormatter(), JsonFormatter()])
def test_no_text_ends_a_line_controls_a_terminal_or_turns_the_direction_of_what_follows(
    formatter: logging.Formatter,
) -> None:
    tricks = "\r\n\x00\x1b[2J\x7f\x9b2J\u2028\u2029\u202e\u2066\u200f"
    tricky = line(f"asked for {tricks}by name", CorruptRecordException(tricks), name="apps.chassis.background")
    written = formatter.format(tricky)
    kept = written.replace("\n", "") if isinstance(formatter, ConsoleFormatter) else written  # the lines of a stack
    assert not [each for each in tricks if not each.isprintable() and each in kept]
    assert written.count("\\u202e") == 2
    if isinstance(formatter, JsonFormatter):
        assert json.loads(written)["message"] == f"asked for {tricks}by name"
    else:
        assert written.splitlines()[1].startswith("Traceback")


def test_of_a_task_or_callback_that_failed_asyncio_reports_no_result_and_no_argument() -> None:
    for message, kept in [
        (
            f"Task exception was never retrieved\nfuture: <Task exception=ValueError('{ADA_HERSELF}')>",
            "Task exception was",
        ),
        (
            f"Exception in callback greet('{ADA_HERSELF}')\nhandle: <Handle greet('{ADA_HERSELF}')>",
            "Exception in callback greet",
        ),
    ]:
        record = line(message, ValueError(ADA_HERSELF))
        assert is_worth_logging(record)
        for formatter in (ConsoleFormatter(), JsonFormatter()):
            assert ADA_HERSELF not in formatter.format(record)
            assert kept in formatter.format(record)


@pytest.mark.parametrize("formatter", [ConsoleFormatter(), JsonFormatter()])
@pytest.mark.parametrize("logger", ["asyncio", "concurrent.futures", UNCAUGHT.name])
def test_an_error_of_kafka_is_quoted_only_where_it_cannot_be_of_a_handler(
    formatter: logging.Formatter, logger: str
) -> None:
    """A handler can raise any class, and what it leaves to asyncio or a thread is not known as its own."""
    of_anyone = line("failed", KafkaError(ADA_HERSELF), name=logger)
    own = line("failed", KafkaError("5 bytes"), name="apps.chassis.background")
    assert ADA_HERSELF not in formatter.format(of_anyone)
    assert "KafkaError" in formatter.format(of_anyone)
    assert "KafkaError: 5 bytes" in formatter.format(own)


class Ungone:
    """Cannot be deleted."""

    def __del__(self) -> None:
        raise ValueError(ADA_HERSELF)


def _fail() -> NoReturn:
    raise KafkaError(ADA_HERSELF)


def _leave() -> NoReturn:
    raise SystemExit(ADA_HERSELF)


def _in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def _delete() -> None:
    thing = Ungone()
    del thing


async def _save() -> None:
    pass


def _forget_to_await() -> None:
    _save()  # type: ignore[unused-coroutine]
    gc.collect()


def _warn() -> None:
    warnings.warn(ADA_HERSELF, stacklevel=1)


UNCAUGHT_ERRORS = {
    "in a thread": (partial(_in_thread, _fail), "a thread has failed", "in _fail"),
    "in a destructor": (_delete, "an error was ignored", "in __del__"),
    "a warning": (_warn, f"UserWarning at {__file__}:", ""),
    "a forgotten await": (_forget_to_await, f"RuntimeWarning at {__file__}:", ""),
}


@pytest.mark.slow
@pytest.mark.usefixtures("process_logging")
@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize(("act", "message", "frame"), UNCAUGHT_ERRORS.values(), ids=UNCAUGHT_ERRORS)
def test_what_nothing_catches_is_a_line_of_the_log_with_type_and_stack_and_without_its_message(
    act: Callable[[], object],
    message: str,
    frame: str,
    log_format: Literal["console", "json"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", written := io.StringIO())
    set_up_logging(Settings(log_format=log_format))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        act()
        _in_thread(_leave)  # ends the thread alone, and is no failure
    said, *stack = written.getvalue().splitlines()
    assert ADA_HERSELF not in written.getvalue()
    if log_format == "json":
        assert stack == []
        assert json.loads(said)["message"].startswith(message)
        assert frame in json.loads(said).get("exception", "")
    else:
        assert message in said
        assert frame in "".join(stack)


Ends = tuple[BinaryIO, TextIO]
"""What reads, which never waits, and what writes."""


@contextmanager
def ends_of(reading: int, writing: int) -> Iterator[Ends]:
    os.set_blocking(reading, False)
    with os.fdopen(writing, "w", encoding="utf-8") as writer, os.fdopen(reading, "rb", buffering=0) as reader:
        yield reader, writer


@pytest.fixture
def pipe() -> Iterator[Ends]:
    with ends_of(*os.pipe()) as ends:
        yield ends


@pytest.fixture(params=["pipe", "pipe of another user", "socket", "terminal"])
def log_reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    """Yield the two ends of each thing that standard error is where no file is."""
    if request.param == "socket":
        made = tuple(end.detach() for end in socket.socketpair())
    else:
        made = pty.openpty() if request.param == "terminal" else os.pipe()
    if request.param == "pipe of another user":
        monkeypatch.setattr(os, "open", refuse_to_open)
    with ends_of(*made) as ends:
        yield ends


def refuse_to_open(*_: object) -> NoReturn:
    raise PermissionError


def said_by(reader: BinaryIO) -> bytes:
    """Return everything that can be read now."""
    return b"".join(iter(lambda: reader.read(1_000_000) or b"", b""))


@pytest.mark.slow
@pytest.mark.usefixtures("process_logging")
@pytest.mark.parametrize("size", [100, 100_000])
def test_a_log_that_nobody_reads_stops_nothing_and_says_later_how_many_lines_were_lost(
    size: int, log_reader: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = log_reader
    monkeypatch.setattr(sys, "stderr", writer)
    set_up_logging(Settings(log_format="json"))
    count = 400_000 // size

    def write() -> None:
        for _ in range(count):
            UNCAUGHT.error("x" * size)

    writing = threading.Thread(target=write)
    writing.start()
    writing.join(LONG)
    is_stopped = writing.is_alive()
    while writing.is_alive():
        reader.read(1_000_000)
    assert not is_stopped
    said = said_by(reader)
    UNCAUGHT.error("line %d", 0)
    UNCAUGHT.error("line %d", 1)
    *lines, lost, first, second = (said + said_by(reader)).decode().splitlines()
    whole = sum(line.endswith("}") for line in lines)
    assert json.loads(lost)["message"] == f"{count - whole} lines of this log were lost, because nothing read it"
    assert [json.loads(line)["message"] for line in (first, second)] == ["line 0", "line 1"]


def test_a_service_without_standard_error_logs_nothing_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    LogOutput().handle(line("nobody hears it"))


def test_a_log_that_is_read_slowly_loses_no_line(pipe: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pipe
    monkeypatch.setattr(sys, "stderr", writer)
    output, count = LogOutput(wait_s=LONG), 300
    output.setFormatter(JsonFormatter())
    messages = [f"{number} " + "ü" * 1_000 * (number % 7) for number in range(count)]

    def write() -> None:
        for message in messages:
            output.emit(line(message))

    writing = threading.Thread(target=write)
    writing.start()
    said = b""
    while writing.is_alive() or select.select([reader], [], [], 0)[0]:
        said += reader.read(1_000) or b""
    assert [json.loads(one)["message"] for one in said.splitlines()] == messages
    writing.join()


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
    assert is_worth_logging(line(message, error)) is worth


def test_an_error_is_reported_in_one_line_and_its_kind_once() -> None:
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(TimeoutError()) == "TimeoutError"
    assert one_line(ProducerClosed()) == "ProducerClosed"
    assert one_line(CorruptRecordException("damaged")) == "CorruptRecordException: damaged"
    assert one_line(ValueError("[Error 2] x")) == "ValueError: [Error 2] x"


def test_a_kafka_that_no_address_leads_to_is_named_as_people_name_it() -> None:
    addresses = collect_hosts(["kafka-1.example:9092", "[::1]:9093"], randomize=False)
    unreached = KafkaConnectionError(f"Unable to bootstrap from {addresses}")  # as aiokafka says it
    assert one_line(unreached) == "no broker answers at kafka-1.example:9092, ::1:9093"


def test_an_error_that_quotes_bytes_that_are_no_utf_8_can_be_shown() -> None:
    reported = one_line(OSError(2, "no such file", b"caf\xe9".decode("utf-8", "surrogateescape")))
    assert reported == "FileNotFoundError: [Errno 2] no such file: 'caf\\udce9'"
    assert one_line(ValueError(b"caf\xe9".decode("utf-8", "surrogateescape"))) == "ValueError: caf\\udce9"
    assert msgspec.json.encode(one_line(ValueError("\ud83d"))) == b'"ValueError: \\\\ud83d"'


def of_library(message: str, *args: object, error: BaseException | None = None, name: str = "aiokafka.client") -> Any:  # noqa: ANN401 - a record
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord(name, logging.ERROR, "", 0, message, args, exc_info)


def test_a_line_of_a_client_library_is_written_once_a_minute_and_says_how_often_it_came() -> None:
    clock = Clock()
    lines = ClientLines(clock)
    assert [lines.filter(of_library("Unable connect to %s", 1)) for _ in range(100)] == [True] + 99 * [False]
    assert lines.filter(of_library("Unable connect to %s", 2))
    clock.now += 61
    again = of_library("Unable connect to %s", 1)
    assert lines.filter(again)
    assert again.getMessage() == "Unable connect to 1 (99 times more since)"


def test_however_many_different_lines_a_client_library_has_only_some_are_written_and_the_rest_is_counted() -> None:
    clock = Clock()
    lines = ClientLines(clock)
    assert sum(lines.filter(of_library("offset %d", number)) for number in range(1_000)) == 20
    clock.now += 61
    later = of_library("later")
    assert lines.filter(later)
    assert later.getMessage() == "later (980 other lines were suppressed)"


def test_a_line_of_a_client_library_quotes_no_foreign_exception() -> None:
    line_with = of_library("failed: %s", ValueError(ADA_HERSELF))
    assert ClientLines().filter(line_with)
    assert line_with.getMessage() == "failed: ValueError"
    kafka = of_library("failed: %s", MessageSizeTooLargeError("5 bytes"))
    assert ClientLines().filter(kafka)
    assert "5 bytes" in kafka.getMessage()
    refused = of_library("failed: %s", ConnectionRefusedError(111, "refused"))
    assert ClientLines().filter(refused)
    assert "refused" in refused.getMessage()


def test_of_faststream_only_errors_of_kafka_are_written() -> None:
    handlers = of_library(f"ValueError: {ADA_HERSELF}", error=ValueError(ADA_HERSELF), name="faststream_kafka")
    assert not ClientLines().filter(handlers)
    assert not ClientLines().filter(of_library("Auto create topics is disabled. Make sure", name="faststream_kafka"))
    assert ClientLines().filter(of_library("Kafka error occurred", error=ProducerClosed(), name="faststream_kafka"))


def test_that_a_new_kafka_has_no_coordinator_yet_is_written_only_when_it_lasts() -> None:
    clock = Clock()
    lines = ClientLines(clock)

    def is_written() -> bool:
        refused = of_library("Group Coordinator Request failed: %s", GroupCoordinatorNotAvailableError())
        return lines.filter(refused)

    assert not is_written()
    clock.now += 4
    assert not is_written()
    clock.now += 4
    assert is_written()
    clock.now += 61
    assert not is_written()


def test_lines_of_our_own_are_all_written() -> None:
    lines = ClientLines()
    assert all(lines.filter(of_library("the same", name="apps.chassis.kafka.connection")) for _ in range(100))
