"""The whole of it on this machine: Kafka, both services, ten records of each stream made and consumed. Until Ctrl-C.

A Kafka that already answers at KAFKA_BOOTSTRAP_SERVERS is used as it is. Where that is not set and none answers at its
default, a local one is started for the demo. Everything that the demo started ends with it.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any

import msgspec
import psutil

from apps.chassis.port_holder import holder_of
from apps.chassis.setting_reading import read_settings
from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import Settings
from contracts import STREAMS
from contracts.stream import Stream
from tools.attached import Attached, end_at_signals
from tools.local_kafka import LocalKafka, LocalKafkaError, reachable
from tools.local_page import with_local_page
from tools.ports import why_taken
from tools.starters import end_with_starters

Services = Mapping[str, Attached]
"""The processes of the services, by their names."""

Call = Callable[[str, str], tuple[int, Any]]
"""Sends a method and a target to a service; returns the status and the JSON of the answer."""

RECORDS = 10
"""Records of each stream that are made."""
READY_WITHIN = 30.0
"""Seconds for a service to be healthy, and for the records to be consumed."""
ENDED_WITHIN_S = 9.8
"""Seconds for the services to end, which they do within 9.5."""


class DemoFailed(Exception):
    """Why the demo ends early, in one line."""


def main(
    producer: Sequence[str] = ("apps.producer",),
    consumer: Sequence[str] = ("apps.consumer",),
    show_more: Callable[[], None] = lambda: None,
) -> None:
    """Run the demo with two services, each a module and its arguments.

    `show_more` is called after the records were consumed. Ends with status 1 and one line when something is in its way.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tools").setLevel(logging.INFO)  # how far a download is
    end_at_signals("SIGTERM", "SIGHUP")
    end_with_starters()
    try:
        settings = read_settings(os.environ)
        refuse_taken({"PRODUCER_PORT": settings.producer_port, "CONSUMER_PORT": settings.consumer_port})
        modules = {"producer": producer, "consumer": consumer}
        with _kafka(settings) as bootstrap_servers, _services(bootstrap_servers, modules) as services:
            _show(settings, services)
            show_more()
            print("\nCtrl-C ends all of it.", flush=True)
            while True:
                _refuse_ended(services)
                time.sleep(0.2)
    except KeyboardInterrupt:
        with suppress(OSError):  # of a terminal that was closed
            print("\nAll ended.")
    except (DemoFailed, LocalKafkaError, WrongSetting) as error:
        sys.exit(str(error))


def refuse_taken(ports: Mapping[str, int]) -> None:
    """Raise `DemoFailed` with a line for each variable whose port is taken."""
    lines = [
        f"{variable}: port {port} is taken {f'by {by}' if (by := holder_of(port)) else f'({reason})'}; "
        f"end what listens there, or set {variable} to another port"
        for variable, port in ports.items()
        if (reason := why_taken(port))
    ]
    if lines:
        raise DemoFailed("\n".join(lines))


@contextmanager
def _kafka(settings: Settings) -> Iterator[str]:
    """Give the address of a Kafka: the one that answers already, or one that is started here."""
    given = settings.kafka_bootstrap_servers
    running = settings.kafka_security_protocol != "PLAINTEXT" or reachable(given)
    if not running and os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        raise DemoFailed(
            f"KAFKA_BOOTSTRAP_SERVERS: no Kafka answers at {given}; start it, or unset the variable to have the demo "
            "start one"
        )
    print(f"Using the Kafka at {given}." if running else "Starting Kafka ...", flush=True)
    with nullcontext() if running else LocalKafka() as started:
        servers = ",".join(started.bootstrap_servers) if started else given
        print(f"Kafka is at {servers}", flush=True)
        yield servers


@contextmanager
def _services(bootstrap_servers: str, modules: Mapping[str, Sequence[str]]) -> Iterator[Services]:
    """Run both services, each in a session of its own: Ctrl-C is for the demo, which then ends them."""
    environment = with_local_page(os.environ) | {"KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers, "LOG_LEVEL": "WARNING"}
    services: dict[str, Attached] = {}
    try:
        for name, module in modules.items():
            print(f"Starting the {name} ...", flush=True)
            services[name] = Attached(*module, env=environment, start_new_session=True)
        yield services
    finally:
        for service in services.values():
            service.terminate()
        for service in services.values():
            with suppress(subprocess.TimeoutExpired):
                service.wait(ENDED_WITHIN_S)
            service.kill()
            service.wait()


def _show(settings: Settings, services: Services) -> None:
    producer, consumer = settings.producer_port, settings.consumer_port
    host = "localhost" if settings.host == "127.0.0.1" else settings.host
    for name, port in (("producer", producer), ("consumer", consumer)):
        _until(partial(_is_healthy, services[name], host, port), services)
    for stream in settings.served(STREAMS):
        show_stream(stream, partial(_call, host, producer), partial(_call, host, consumer), services)
    print(f"\n  live page  http://{host}:{consumer}/")
    print(f"  producer   http://{host}:{producer}/schema\n  consumer   http://{host}:{consumer}/schema")
    first = settings.served(STREAMS)[0].name
    print(f"\nIn another terminal: uv run just create {first} 100, uv run just consumer-messages {first}.")


def show_stream(stream: Stream[Any], call_producer: Call, call_consumer: Call, services: Services) -> None:
    """Make some records of a stream, wait until each is consumed or dead-lettered, and print the result."""

    def status() -> Any:  # noqa: ANN401 - JSON
        return call_consumer("GET", "/consumers/status")[1]["streams"][stream.name]

    before = status()
    answered, made = call_producer("POST", f"/producers/{stream.name}/generate?number={RECORDS}")
    if answered != HTTPStatus.CREATED:
        raise DemoFailed(f"the producer answered {answered}: {made}")

    def since(count: str) -> int:
        return int(status()[count] - before[count])

    def missing() -> int:
        return RECORDS - since("messages_consumed_count") - since("dead_lettered_count")

    def behind() -> str:
        now = status()
        return (
            f"{missing()} of {RECORDS} made-up {stream.name} are not consumed; "
            f"it is {now['state']}: {now['last_error']}"
        )

    _until(lambda: missing() <= 0, services, behind)
    refused = since("dead_lettered_count")
    if refused:
        print(f"\n{refused} of {RECORDS} made-up {stream.name} were dead-lettered: {status()['last_error']}")
        print("The live page shows why. Made-up records know only the types of fields: docs/how-to/add-a-message.md.")
    if refused < RECORDS:
        print(f"\n{RECORDS - refused} {stream.name} were made, sent through Kafka and consumed:\n")
        _, consumed = call_consumer("GET", f"/consumers/messages?stream={stream.name}&limit={RECORDS - refused}")
        for message in consumed["messages"]:
            summary = stream.summary_of(msgspec.convert(message["value"], stream.record_type))
            print(f"  partition {message['partition']} offset {message['offset']:>4}  {summary}")


def _is_healthy(service: Attached, host: str, port: int) -> bool:
    """Return whether it is this service that listens there, and no other demo's, and whether it can do its job."""
    with suppress(psutil.Error):
        listening = {
            at.laddr.port for at in psutil.Process(service.pid).net_connections("tcp") if at.status == "LISTEN"
        }
        if port not in listening:
            return False
    return _call(host, port, "GET", "/health-check")[0] == HTTPStatus.OK


def _refuse_ended(services: Services) -> None:
    for name, service in services.items():
        if (status := service.poll()) is not None:
            raise DemoFailed(how_it_ended(name, status))


def how_it_ended(name: str, status: int) -> str:
    """Return a line about a service that has ended; a negative status is the signal that killed it."""
    if status < 0:
        number = -status
        known = number in set(signal.Signals)
        return f"the {name} was killed by {signal.Signals(number).name if known else f'signal {number}'}"
    return f"the {name} has ended with status {status}" + ("; its last line above says why" if status else "")


def _until(
    condition: Callable[[], bool], services: Services, problem: Callable[[], str] = lambda: "the services are not ready"
) -> None:
    """Wait for a condition; after 30 s raise `DemoFailed` with the problem."""
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        _refuse_ended(services)
        with suppress(OSError, HTTPException):  # not listening yet
            if condition():
                return
        time.sleep(0.1)
    raise DemoFailed(f"after {READY_WITHIN:g} s: {problem()}")


def _call(host: str, port: int, method: str, target: str) -> tuple[int, Any]:
    connection = HTTPConnection(host, port, timeout=10)
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


if __name__ == "__main__":
    main()
