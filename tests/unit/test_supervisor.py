"""The parts of a producer of several processes, without the processes."""

import asyncio
import errno
import logging
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from samples import LONG, until

from apps.chassis.http.guess_limit import BURST, GuessLimit
from apps.chassis.observability.metric_sums import Sums, families_of, summed
from apps.chassis.service import server_config
from apps.chassis.settings import Settings
from apps.chassis.workers import supervisor as module
from apps.chassis.workers.link import Link, NoAnswer
from apps.chassis.workers.supervisor import Supervisor
from apps.producer.app import create_app

pytestmark = pytest.mark.anyio


def registry_with(number: int, healthy: int, ends: str = "ok") -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("calls", "Calls.", ["status"], registry=registry).labels(ends).inc(number)
    Histogram("seconds", "Seconds.", buckets=(1, 2), registry=registry).observe(number)
    Gauge("service_healthy", "Healthy.", registry=registry).set(healthy)
    Gauge("process_resident_memory_bytes", "Memory.", registry=registry).set(number)
    return registry


def test_metrics_of_workers_are_summed_and_the_least_healthy_one_counts() -> None:
    total = Sums(summed(families_of(registry_with(*one).collect()) for one in ((1, 1), (2, 0), (5, 1, "failed"))))
    text = generate_latest(total).decode()
    for line in (
        'calls_total{status="ok"} 3.0',
        'calls_total{status="failed"} 5.0',
        'seconds_bucket{le="1.0"} 1.0',
        'seconds_bucket{le="2.0"} 2.0',
        'seconds_bucket{le="+Inf"} 3.0',
        "seconds_sum 8.0",
        "service_healthy 0.0",
        "process_resident_memory_bytes 8.0",
    ):
        assert f"\n{line}\n" in text


def test_limits_of_a_producer_are_divided_by_its_workers() -> None:
    alone, one_of_four = Settings(), Settings(producer_workers=4)
    http: Any = server_config(create_app(one_of_four), one_of_four).http
    assert http.keywords["limits"].max_without_request == 500
    assert [settings.share_of(10) for settings in (alone, one_of_four, Settings(producer_workers=64))] == [10, 2, 1]
    app: Any = create_app(one_of_four)
    producer = app.state["parts"]["people"]
    assert producer.publisher.route.limits.in_flight_bytes == 8 * 1024 * 1024
    assert producer.spools.max_bytes == 64 * 1024 * 1024
    assert app.outermost._limit.max_bytes == 64 * 1024 * 1024
    assert app.outermost._limit._max_calls == 125


def test_an_address_guesses_no_faster_at_four_workers_than_at_one() -> None:
    workers = [GuessLimit(now=lambda: 0.0, workers=4) for _ in range(4)]
    tries = 0
    while free := [one for one in workers if not one.blocks("192.0.2.1", None)]:
        free[0].note_wrong("192.0.2.1")
        tries += 1
    assert BURST <= tries <= BURST + 4


async def test_a_process_that_does_not_answer_in_time_or_has_ended_gives_no_answer() -> None:
    one, other = socket.socketpair()

    async def answer(question: str, about: str) -> str:
        if question == "hard":
            await asyncio.Event().wait()
        return f"{question} {about}"

    links = [Link(end, answer) for end in (one, other)]
    running = [asyncio.create_task(link.run()) for link in links]
    await until(lambda: all(link._writer for link in links))
    with pytest.raises(NoAnswer):
        await links[0].ask("hard", within_s=0.01)
    assert b"easy events" in await links[0].ask("easy", "events")
    running[1].cancel()
    with pytest.raises(NoAnswer):
        await links[0].ask("hard")
    await running[0]
    with pytest.raises(NoAnswer):
        await links[0].ask("easy")


async def test_a_service_whose_workers_end_again_and_again_ends_with_a_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "raise SystemExit(3)"])
    with socket.create_server(("127.0.0.1", 0)) as listening, caplog.at_level(logging.ERROR):
        assert await Supervisor(2, listening).run() == 1
    assert "ended with status 3, the fourth within a minute: the service ends" in caplog.text


async def test_a_service_whose_workers_cannot_be_started_ends_with_a_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with socket.create_server(("127.0.0.1", 0)) as listening, caplog.at_level(logging.ERROR):
        async with asyncio.timeout(LONG):
            assert await Supervisor(2, listening).run() == 1
    assert "cannot be started: No such file or directory" in caplog.text


SLEEPS = "import time; time.sleep(600)"
FAILS_BY_CTRL_C = "import time\ntry: open('{}', 'w'); time.sleep(600)\nfinally: raise SystemExit(1)"
LOSES_ITS_LINK = f"import os; os.close(int(os.environ['SUPERVISED_WORKER'].split(',')[1])); {SLEEPS}"


async def test_a_signal_that_comes_while_a_worker_is_started_ends_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", SLEEPS])
    start = asyncio.create_subprocess_exec

    async def start_while_told_to_end(*command: str, **options: Any) -> Process:  # noqa: ANN401 - as asyncio has it
        process = await start(*command, **options)
        supervisor._end()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_while_told_to_end)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        supervisor = Supervisor(2, listening)
        assert await supervisor.run() == 0, "it was killed in the end"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_worker_that_would_take_ctrl_c_for_a_failure_ends_well(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs, told = tmp_path / "runs", dict[int, Callable[[], None]]()
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", FAILS_BY_CTRL_C.format(runs)])
    monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", told.__setitem__)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = asyncio.create_task(Supervisor(1, listening).run())
        await until(runs.exists)
        told[number]()
        async with asyncio.timeout(LONG):
            assert await running == 0


async def test_a_worker_that_can_no_longer_be_started_because_the_service_ends_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def start_with_a_closed_socket(*_: str, **__: Any) -> Process:  # noqa: ANN401 - as asyncio has it
        supervisor._end()
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_with_a_closed_socket)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        supervisor = Supervisor(1, listening)
        assert await supervisor.run() == 0


async def test_a_worker_that_has_lost_its_link_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", LOSES_ITS_LINK])
    monkeypatch.setattr(module, "LINGERS_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as listening, caplog.at_level(logging.ERROR):
        async with asyncio.timeout(LONG):
            assert await Supervisor(1, listening).run() == 1
    assert caplog.messages[:2] == [
        "worker 1 has lost its link, and is ended by SIGTERM",
        "worker 1 ended with status -15, and is started again",
    ]
