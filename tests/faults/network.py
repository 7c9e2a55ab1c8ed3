"""The network between services and brokers: a relay that can be cut and slowed, with a link for each pair of them.

Brokers tell their clients to come to 127.0.0.1. Each service gets an address of the loopback network to itself instead
(127.0.0.2 and on: Linux answers on all of them), where the relay listens on the brokers' own ports; and in every answer
the brokers' address is replaced by that one. It is as long, so no length in the protocol changes.
"""

import asyncio
import re
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, Self

BROKERS_HOST = b"127.0.0.1"
MAX_READ_BYTES = 1 << 20
"""Bytes that are buffered of a connection before it is read no further."""

Cut = Literal["silent", "refused"]
"""`silent` lets connections stand and passes nothing on; `refused` ends them and refuses new ones."""


class Link:
    """Connections from one service to one broker."""

    def __init__(self, host: str, port: int, advertised: re.Pattern[bytes]) -> None:
        self.delay = 0.0
        self._host = host
        self._port = port
        self._advertised = advertised
        self._passing = asyncio.Event()
        self._passing.set()
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Listen, and pass on."""
        self._passing.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._relay, self._host, self._port, limit=MAX_READ_BYTES)

    async def cut(self, manner: Cut) -> None:
        """Pass nothing on until it is opened again."""
        if manner == "silent":
            self._passing.clear()
        else:
            await self.close()

    async def close(self) -> None:
        """End all connections, and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for end in list(self._ends):
            end.transport.abort()

    async def _relay(self, from_service: asyncio.StreamReader, to_service: asyncio.StreamWriter) -> None:
        try:
            from_broker, to_broker = await asyncio.open_connection(
                BROKERS_HOST.decode(), self._port, limit=MAX_READ_BYTES
            )
        except OSError:
            to_service.transport.abort()
            return
        ends = {to_service, to_broker}
        self._ends |= ends
        try:
            requests = self._pump(from_service, to_broker, lambda frame: frame)
            answers = self._pump(from_broker, to_service, self._readdress)
            tasks = [asyncio.ensure_future(requests), asyncio.ensure_future(answers)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._ends -= ends
            for end in ends:
                end.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, change: Callable[[bytes], bytes]
    ) -> None:
        """Pass on Kafka's requests or answers: each is preceded by its length in four bytes."""
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                size = await source.readexactly(4)
                frame = change(await source.readexactly(int.from_bytes(size)))
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self._passing.wait()
                sink.write(size + frame)
                await sink.drain()

    def _readdress(self, frame: bytes) -> bytes:
        return self._advertised.sub(self._host.encode(), frame)


class Network:
    """The links between services, each by its number from 0 to 7, and the brokers on these ports of 127.0.0.1."""

    def __init__(self, services: int, ports: Sequence[int]) -> None:
        self._ports = ports
        # wherever the protocol names a broker, its port follows its host at once
        followed = b"|".join(re.escape(port.to_bytes(4)) for port in ports)
        advertised = re.compile(re.escape(BROKERS_HOST) + b"(?=" + followed + b")", re.DOTALL)
        self._links = [[Link(host_of(service), port, advertised) for port in ports] for service in range(services)]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network")

    def __enter__(self) -> Self:
        self._thread.start()
        for service in range(len(self._links)):
            self._each(service, range(len(self._ports)), Link.open)
        return self

    def __exit__(self, *_: object) -> None:
        for service in range(len(self._links)):
            self._each(service, range(len(self._ports)), Link.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def bootstrap_servers(self, service: int) -> str:
        """Return where a service finds the brokers."""
        return ",".join(f"{host_of(service)}:{port}" for port in self._ports)

    @contextmanager
    def cut(self, service: int, brokers: Sequence[int], manner: Cut) -> Iterator[None]:
        """Cut a service off from these brokers for as long as the block takes."""
        self._each(service, brokers, lambda link: link.cut(manner))
        try:
            yield
        finally:
            self._each(service, brokers, Link.open)

    @contextmanager
    def slowed(self, service: int, seconds: float) -> Iterator[None]:
        """Have every request and every answer of a service take so much longer for as long as the block takes."""
        for link in self._links[service]:
            link.delay = seconds
        try:
            yield
        finally:
            for link in self._links[service]:
                link.delay = 0.0

    def _each(self, service: int, brokers: Sequence[int], change: Callable[[Link], Coroutine[Any, Any, None]]) -> None:
        for broker in brokers:
            asyncio.run_coroutine_threadsafe(change(self._links[service][broker]), self._loop).result(10)


def host_of(service: int) -> str:
    """Return the address at which a service finds the brokers; as long as theirs."""
    return f"127.0.0.{2 + service}"
