"""The whole of it on this machine: Kafka, both services, ten people made and consumed. Until Ctrl-C.

A Kafka that already answers at KAFKA_BOOTSTRAP_SERVERS is used as it is; otherwise a local one is started for the
demo, and is gone with it.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from types import FrameType
from typing import Any

from apps.chassis.settings import Settings, WrongSetting, read_settings
from tools.local_kafka import LocalKafka, LocalKafkaError, reachable
from tools.local_page import with_local_page

Services = Sequence[subprocess.Popen[bytes]]

PEOPLE = 10
READY_WITHIN = 30.0
"""Seconds for a service to be healthy, and for people made to be consumed."""


class DemoFailed(Exception):
    """Why the demo ends early, in one line."""


def main() -> None:
    """Run the demo; ends with status 1 and one line when something is in its way."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tools").setLevel(logging.INFO)  # how far a download is
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        settings = read_settings(os.environ)
        with (
            _kafka(settings) as bootstrap_servers,
            _service("producer", bootstrap_servers) as producer,
            _service("consumer", bootstrap_servers) as consumer,
        ):
            services = (producer, consumer)
            _show(settings, services)
            while True:
                _refuse_ended(services)
                time.sleep(0.2)
    except KeyboardInterrupt:
        print("\nAll ended.")
    except (DemoFailed, LocalKafkaError, WrongSetting) as error:
        sys.exit(str(error))


@contextmanager
def _kafka(settings: Settings) -> Iterator[str]:
    """Give the address of a Kafka: the one that answers already, or one that is started here."""
    given = settings.kafka_bootstrap_servers
    running = settings.kafka_security_protocol != "PLAINTEXT" or reachable(given)
    print(f"Using the Kafka at {given}." if running else "Starting Kafka ...", flush=True)
    with nullcontext() if running else LocalKafka() as started:
        servers = ",".join(started.bootstrap_servers) if started else given
        print(f"Kafka is at {servers}", flush=True)
        yield servers


@contextmanager
def _service(name: str, bootstrap_servers: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service in a process and session of its own: Ctrl-C is for the demo, which then ends it."""
    print(f"Starting the {name} ...", flush=True)
    environment = with_local_page(os.environ) | {"KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers, "LOG_LEVEL": "WARNING"}
    process = subprocess.Popen([sys.executable, "-m", f"apps.{name}"], env=environment, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _show(settings: Settings, services: Services) -> None:
    producer, consumer = settings.producer_port, settings.consumer_port
    host = "localhost" if settings.host == "127.0.0.1" else settings.host
    for port in (producer, consumer):
        _until(partial(_is_healthy, host, port), services)
    _, before = _call(host, consumer, "GET", "/consumers/status")
    status, made = _call(host, producer, "POST", f"/producers/basic_producer?number_of_people={PEOPLE}")
    if status != HTTPStatus.CREATED:
        raise DemoFailed(f"the producer answered {status}: {made}")
    wanted = before["messages_consumed_count"] + PEOPLE
    _until(lambda: _call(host, consumer, "GET", "/consumers/status")[1]["messages_consumed_count"] >= wanted, services)
    _, consumed = _call(host, consumer, "GET", f"/consumers/messages?limit={PEOPLE}")
    print(f"\n{PEOPLE} people were made, sent through Kafka and consumed:\n")
    for message in consumed["messages"]:
        person = message["value"]
        print(f"  partition {message['partition']} offset {message['offset']:>4}  {person['name']:24} {person['city']}")
    print(f"\n  live page  http://{host}:{consumer}/")
    print(f"  producer   http://{host}:{producer}/schema\n  consumer   http://{host}:{consumer}/schema")
    print("\nIn another terminal: uv run just create-people 100, uv run just consumer-messages. Ctrl-C ends all of it.")


def _is_healthy(host: str, port: int) -> bool:
    return _call(host, port, "GET", "/health-check")[0] == HTTPStatus.OK


def _refuse_ended(services: Services) -> None:
    if any(service.poll() is not None for service in services):
        raise DemoFailed("a service has ended; its last line above says why")


def _until(condition: Callable[[], bool], services: Services) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        _refuse_ended(services)
        with suppress(OSError, HTTPException):  # not listening yet
            if condition():
                return
        time.sleep(0.1)
    raise DemoFailed(f"the services were not ready within {READY_WITHIN:g} s")


def _call(host: str, port: int, method: str, target: str) -> tuple[int, Any]:
    connection = HTTPConnection(host, port, timeout=10)
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
