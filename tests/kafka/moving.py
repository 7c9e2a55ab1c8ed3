"""A broker that moves: clients find it at one address of the loopback network, and later at another (Linux).

The bootstrap address stays where it is, as that of a load balancer does, and names whichever address holds now.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

BOOTSTRAP, FIRST, SECOND = "127.0.0.4", "127.0.0.5", "127.0.0.6"
ADVERTISED = b"127.0.0.1"


class Moving:
    """Relays to a broker on a port of 127.0.0.1, which its clients are told to find elsewhere."""

    def __init__(self, port: int) -> None:
        self.bootstrap_servers = f"{BOOTSTRAP}:{port}"
        self._port = port
        self._host = FIRST
        self._servers: dict[str, asyncio.Server] = {}
        self._ends: dict[str, set[asyncio.StreamWriter]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="moving broker")

    def __enter__(self) -> Self:
        self._thread.start()
        for host in (BOOTSTRAP, FIRST):
            self._run(lambda host=host: self._listen(host))  # type: ignore[misc]  # mypy knows no default here
        return self

    def __exit__(self, *_: object) -> None:
        for host in list(self._servers):
            self._run(lambda host=host: self._close(host))  # type: ignore[misc]  # as above
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def vanish(self) -> None:
        """End all connections, and listen nowhere."""
        for host in list(self._servers):
            self._run(lambda host=host: self._close(host))  # type: ignore[misc]  # as above

    def come_back_elsewhere(self) -> None:
        """Be found at another address; nobody listens at the first one any more."""
        self._host = SECOND
        for host in (BOOTSTRAP, SECOND):
            self._run(lambda host=host: self._listen(host))  # type: ignore[misc]  # as above

    def _run(self, work: Callable[[], object]) -> None:
        asyncio.run_coroutine_threadsafe(work(), self._loop).result(10)  # type: ignore[arg-type]  # a coroutine

    async def _listen(self, host: str) -> None:
        self._ends[host] = set()
        self._servers[host] = await asyncio.start_server(
            lambda reader, writer: self._relay(host, reader, writer), host, self._port
        )

    async def _close(self, host: str) -> None:
        self._servers.pop(host).close()
        for end in self._ends.pop(host):
            end.transport.abort()

    async def _relay(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_broker, to_broker = await asyncio.open_connection(ADVERTISED.decode(), self._port)
        ends = self._ends[host]
        ends |= {writer, to_broker}
        pumps = [
            asyncio.create_task(self._pump(reader, to_broker, readdress=False)),
            asyncio.create_task(self._pump(from_broker, writer, readdress=True)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        for end in (writer, to_broker):
            ends.discard(end)
            end.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, readdress: bool) -> None:
        """Pass on Kafka's requests or answers, each preceded by its length; the addresses are of the same length."""
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                size = await source.readexactly(4)
                frame = await source.readexactly(int.from_bytes(size))
                if readdress:
                    port = self._port.to_bytes(4)
                    frame = frame.replace(ADVERTISED + port, self._host.encode() + port)
                sink.write(size + frame)
                await sink.drain()
