"""Relays between services and brokers, each of which may be closed, cut or slowed.

Brokers advertise 127.0.0.1 to their clients. A relay listens on a broker's own port at another address of the
loopback network (127.0.0.2 and on: Linux answers on all of them), and replaces the brokers' address in every answer by
another one. It is as long, so no length in the protocol changes.
"""

import asyncio
import re
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Self

BROKERS_HOST = b"127.0.0.1"
MAX_READ_BYTES = 1 << 20
"""Bytes that are buffered of a connection before it is read no further."""


def advertised_by(ports: Sequence[int]) -> re.Pattern[bytes]:
    """Return what finds the address of the brokers on these ports wherever the protocol names one."""
    followed = b"|".join(re.escape(port.to_bytes(4)) for port in ports)  # its port follows its host at once
    return re.compile(re.escape(BROKERS_HOST) + b"(?=" + followed + b")", re.DOTALL)


class Link:
    """Connections to one broker by way of `host`; answers send services to the address that `named` returns."""

    def __init__(self, host: str, port: int, advertised: re.Pattern[bytes], named: Callable[[], str]) -> None:
        self.delay = 0.0
        self.answered_bytes = 0
        self._host, self._port = host, port
        self._advertised, self._named = advertised, named
        self._passing = asyncio.Event()
        self._passing.set()
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Listen, and pass on."""
        self._passing.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._relay, self._host, self._port, limit=MAX_READ_BYTES)

    async def hold(self) -> None:
        """Let connections stand, and pass nothing on."""
        self._passing.clear()

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
        self.answered_bytes += len(frame)
        return self._advertised.sub(self._named().encode(), frame)


class Relays:
    """Links, which run on an event loop in a thread of its own."""

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = links
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relays")

    def __enter__(self) -> Self:
        self._thread.start()
        self.each(self.links, Link.open)
        return self

    def __exit__(self, *_: object) -> None:
        self.each(self.links, Link.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def each(self, links: Sequence[Link], change: Callable[[Link], Coroutine[Any, Any, None]]) -> None:
        """Do something with some of the links, one after the other."""
        for link in links:
            asyncio.run_coroutine_threadsafe(change(link), self._loop).result(10)
