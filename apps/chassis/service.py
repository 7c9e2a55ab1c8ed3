"""Run a service as a process: read settings, listen on a port, and shut down gracefully."""

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from ipaddress import ip_address
from types import FrameType
from typing import Any

import msgspec
import uvicorn
from litestar import Litestar
from litestar.types import ASGIApp

from apps.chassis.http.connection_limits import MAX_WITHOUT_REQUEST, ConnectionLimits, LimitedProtocol
from apps.chassis.http.health import VERSION
from apps.chassis.http.tls import server_tls
from apps.chassis.internals.canary import UnexpectedLibrary
from apps.chassis.internals.protections import protect
from apps.chassis.liveness import LivenessServer
from apps.chassis.loop_watch import LOOP_WATCH
from apps.chassis.observability.logs import set_up_logging
from apps.chassis.open_files import fewer_where_files_are_few, raise_limit
from apps.chassis.port_holder import holder_of
from apps.chassis.setting_reading import read_settings
from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import Settings, is_address
from apps.chassis.workers.supervisor import Supervisor
from apps.chassis.workers.worker import this_worker
from contracts import STREAMS
from contracts.stream import BadStream, Stream

log = logging.getLogger(__name__)

LAST_ANSWERS_S = 2
"""Seconds that open requests have to end after SIGTERM; closing Kafka's clients then takes up to 8."""
ENDED_WITHIN_S = 9.5
"""Seconds from a signal to the end of the process, even if some tasks have not ended."""
NOT_READING_MS = 30_000
"""Milliseconds after which the system disconnects a caller that does not read its answer (RFC 5482)."""

CreateApp = Callable[[Settings, asyncio.Event], Litestar]
"""Build an application; the event is set when the shutdown begins, before connections are closed."""


WRONG_START = (WrongSetting, BadStream, UnexpectedLibrary)
"""Errors that stop a start; their message is one line that says what to change."""


class Server(uvicorn.Server):
    """Announces the shutdown to the application at once: uvicorn does so only after the last answer."""

    def __init__(self, config: uvicorn.Config, ending: asyncio.Event) -> None:
        super().__init__(config)
        self._ending = ending

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown at a signal, and limit its time, because a handler may never end."""
        super().handle_exit(sig, frame)
        if not self._ending.is_set():
            deadline = threading.Timer(ENDED_WITHIN_S, _exit_now)
            deadline.daemon = True
            deadline.start()
        self._ending.set()


def serve(
    create_app: CreateApp, service: str, streams: Sequence[Stream[Any]] = STREAMS, *, warnings: Sequence[str] = ()
) -> None:
    """Serve a `producer` or `consumer` until SIGTERM or SIGINT, then end with status 0 within 10 s.

    The settings of `streams` are read from the environment, and `warnings` about it are logged. For a wrong setting, or
    a port that cannot be used, the process ends at once with status 1 and one line that names the variable.
    """
    ending, worker = asyncio.Event(), this_worker(os.environ)
    try:
        settings = read_settings(os.environ, streams)
        if service != "producer":
            settings = alone(settings)
        port = getattr(settings, f"{service}_port")
        listening = worker.listening if worker else listen(settings.host, port, f"{service.upper()}_PORT")
        has_liveness = settings.liveness_port and not worker
        liveness = listen(settings.host, settings.liveness_port, "LIVENESS_PORT") if has_liveness else None
        set_up_logging(settings)
        address = str(listening.getsockname()[0])
        settings = msgspec.structs.replace(settings, allowed_hosts=allowed_hosts_at(settings, address))
        check_anonymous(settings, address)
        app, tls = build(create_app, settings, ending)
    except WRONG_START as error:
        sys.exit(str(error))
    if worker:
        worker.join(app)
    else:
        topics = ", ".join(settings.of(stream).topic for stream in settings.served(streams))
        url = f"{'https' if tls else 'http'}://{_shown(address)}:{listening.getsockname()[1]}"
        _log_start(service, url, settings.kafka_bootstrap_servers, topics, warnings)
        if settings.producer_workers > 1:
            sys.exit(supervise(settings.producer_workers, listening, liveness))
    if liveness:
        LivenessServer(liveness, app.state[LOOP_WATCH]).start()
    _collect_garbage_less_often()
    raise_limit()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, _ignore)  # uvicorn raises the signal again after its shutdown
    Server(server_config(app, settings, tls), ending).run(sockets=[listening])


def _log_start(service: str, url: str, servers: str, topics: str, warnings: Iterable[str]) -> None:
    log.info("%s %s listens on %s, for Kafka at %s, topics: %s", service, VERSION, url, servers, topics)
    for warning in warnings:
        log.warning(warning)


def supervise(workers: int, listening: socket.socket, liveness: socket.socket | None) -> int:
    """Run workers that serve on a socket until SIGTERM, SIGINT or SIGHUP; return the exit status."""

    async def run() -> int:
        supervisor = Supervisor(workers, listening)
        if liveness:
            LivenessServer(liveness, supervisor).start()
        return await supervisor.run()

    return asyncio.run(run())


def build(
    create_app: CreateApp, settings: Settings, ending: asyncio.Event | None = None
) -> tuple[Litestar, ssl.SSLContext | None]:
    """Return the application and the TLS that it is served with, if any. Raises one of `WRONG_START`."""
    tls = server_tls(settings)
    return create_app(settings, ending or asyncio.Event()), tls


def settings_from_environment() -> Settings:
    """Return the settings for an application that another server runs, like `uvicorn --factory`.

    For a wrong setting the process ends with one line that names the variable.
    """
    try:
        settings = alone(read_settings(os.environ))
        protect()
    except WRONG_START as error:
        sys.exit(str(error))
    set_up_logging(settings)
    address = settings.host if is_address(settings.host) else "127.0.0.1"
    return msgspec.structs.replace(settings, allowed_hosts=allowed_hosts_at(settings, address))


def warn_of_other_server() -> None:
    """Log what a server lacks that another program than this one runs: when it starts, not for `litestar routes`."""
    log.warning(
        "this server listens where its own options say, not at HOST, PRODUCER_PORT or CONSUMER_PORT. It does not limit "
        "slow, idle and unread connections, loses a body after an offered upgrade, does not serve LIVENESS_PORT, "
        "starts no PRODUCER_WORKERS, and stops without time for the last answers: run `python -m apps.producer` or "
        "`apps.consumer` in production"
    )


def alone(settings: Settings) -> Settings:
    """Return the settings of a service that is one process, whose limits are not shared."""
    return msgspec.structs.replace(settings, producer_workers=1)


def check_anonymous(settings: Settings, address: str) -> None:
    """Raise `WrongSetting` when other machines could reach the service, and nothing says who may call it."""
    if settings.api_keys.needed or settings.allow_anonymous or ip_address(address).is_loopback:
        return
    raise WrongSetting(
        f"HOST: on {settings.host} anyone who can reach the service could change and read everything; "
        "set API_KEY, API_KEY_FILE or JWT_ISSUER, or allow it with ALLOW_ANONYMOUS=true"
    )


def server_config(app: ASGIApp, settings: Settings, tls: ssl.SSLContext | None = None) -> uvicorn.Config:
    """Return the uvicorn configuration of an application."""
    limits = ConnectionLimits(max_without_request=fewer_where_files_are_few(settings.share_of(MAX_WITHOUT_REQUEST)))
    return uvicorn.Config(
        app,
        ssl_context_factory=(lambda *_: tls) if tls else None,
        http=LimitedProtocol if limits == ConnectionLimits() else partial(LimitedProtocol, limits=limits),  # type: ignore[arg-type]  # it is only called
        ws="none",  # an offered WebSocket is ignored, like any other upgrade
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing depends on a caller's address or scheme
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=LAST_ANSWERS_S,
    )


def allowed_hosts_at(settings: Settings, address: str) -> str:
    """Return ALLOWED_HOSTS of a service that listens on an address; on loopback by default this machine's names."""
    if settings.allowed_hosts or not ip_address(address).is_loopback:
        return settings.allowed_hosts
    return ",".join(sorted({"localhost"} if is_address(settings.host) else {"localhost", settings.host}))


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Return the address to listen on. Raises `WrongSetting` for a host that is unknown."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:  # a name with an empty or too long label cannot be encoded
        why = getattr(error, "strerror", None) or "not a host name"
        raise WrongSetting(f"HOST: cannot listen on {host!r}: {why}") from None
    return family, address


def listen(host: str, port: int, port_variable: str) -> socket.socket:
    """Return a listening socket. Raises `WrongSetting` with the variable to change."""
    family, address = resolve(host, port)
    listening = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":  # elsewhere it would let two processes share a port
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: accepted connections inherit it
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, NOT_READING_MS)
    try:
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        wrong = "HOST" if error.errno == errno.EADDRNOTAVAIL else port_variable
        by = f", by {holder}" if error.errno == errno.EADDRINUSE and (holder := holder_of(port)) else ""
        raise WrongSetting(f"{wrong}: cannot listen on {host}:{port}: {error.strerror}{by}") from None
    return listening


def _shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _collect_garbage_less_often() -> None:
    """Exclude the objects of imported modules from garbage collection, and collect rarely.

    Records are many small objects that are freed by reference counting. Searching them for reference cycles would take
    a tenth to a quarter of the time per record.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _exit_now() -> None:
    log.critical("a task does not end, so the process exits; its uncommitted records will be redelivered")
    os._exit(1)


def _ignore(_: int, __: FrameType | None) -> None:
    """Ignore the signal that uvicorn raises after its shutdown, so that the process ends with status 0."""
