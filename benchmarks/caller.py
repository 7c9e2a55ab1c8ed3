"""Calls a service as cheaply as Python can, in a process of its own: what is measured is the service.

    python -m benchmarks.caller post PORT TARGET CONNECTIONS PEOPLE REQUESTS [PER_SECOND]
    python -m benchmarks.caller lines PORT PEOPLE
    python -m benchmarks.caller visible PRODUCER_PORT CONSUMER_PORT PER_SECOND SECONDS
    python -m benchmarks.caller pushed PRODUCER_PORT CONSUMER_PORT PER_SECOND SECONDS

`post` posts so many requests of so many people each (one alone is no list, none is no body): each connection its next
one as soon as it has its answer, or all of them together at an even pace. `lines` sends people as lines of JSON in one
request, and reads the receipts meanwhile. `visible` posts people one by one at an even pace, and looks for some of them
until the consumer shows them. `pushed` posts them likewise, and takes all of them from the live tail. All bodies
are made beforehand. Each prints what it found as JSON: `seconds`, or times in milliseconds.

At a pace the time of a request runs from when its turn was, whether or not there was a connection to post it on: a
stall counts for all whom it delays.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from itertools import cycle, islice
from statistics import median, quantiles
from typing import Any, cast

from uvicorn.loops.auto import auto_loop_factory

from apps.producer.generating.people import PersonFactory
from benchmarks.processes import BenchmarkFailed
from contracts.stream import encode

DISTINCT = 100_000
"""People that bodies are made of, at most; then the same come again."""
PEOPLE_OF_A_PIECE = 250
"""Lines that are written at a time: 64 KiB."""
CONNECTIONS = 64
FOLLOWED_PER_SECOND = 20
"""People that are looked for, of all that are posted in a second."""
LOOK_AGAIN = 0.002
"""Seconds between two looks for a person that is not visible yet; a tenth of its time so far where that is longer, so
that looking does not make a stall longer."""
VISIBLE_WITHIN = 10.0
"""Seconds."""
HEAD = "{} {} HTTP/1.1\r\nHost: localhost\r\n{}\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
RECEIPT = b'"offset":'
KEY = re.compile(rb'"key":{"text":"([^"]+)"')


class Connection(asyncio.Protocol):
    """A connection that stays open, for one request at a time whose answer tells its length."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take a piece of an answer."""
        if self._answer is None:
            return
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head >= 0 and (length := LENGTH.search(self._received, 0, head)):
            if len(self._received) >= head + 4 + int(length[1]):
                self._answer.set_result(bytes(self._received))
                self._received.clear()
        elif head >= 0:
            self._answer.set_exception(BenchmarkFailed(f"an answer without a length: {self._received[:300]!r}"))

    def connection_lost(self, _: Exception | None) -> None:
        """Return the request under way."""
        if self._answer and not self._answer.done():
            self._answer.set_exception(BenchmarkFailed("a connection was closed"))

    async def ask(self, request: bytes) -> bytes:
        """Return the answer, head and all. Raises `BenchmarkFailed` for one that is no success."""
        if self.transport.is_closing():
            raise BenchmarkFailed("a connection was idle for so long that it was closed")
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        answer = await self._answer
        if not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
            raise BenchmarkFailed(f"{answer[:300]!r}")
        return answer


@asynccontextmanager
async def connected(port: int, number: int) -> AsyncIterator[list[Connection]]:
    """Hold connections open for the block."""
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(Connection, "127.0.0.1", port) for _ in range(number)]
    try:
        yield [connection for _, connection in made]
    finally:
        for transport, _ in made:
            transport.close()


def post_of(target: str, body: bytes) -> bytes:
    """Return a request that is ready to be sent."""
    return (
        HEAD.format("POST", target, f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n").encode()
        + body
    )


def bodies(people: int, number: int) -> list[bytes]:
    """Return bodies of so many people each: a list, one person, or nothing."""
    if not people:
        return [b""]
    made = PersonFactory.batch(people * min(number, DISTINCT // people))
    if people == 1:
        return [encode(person) for person in made]
    return [encode(made[start : start + people]) for start in range(0, len(made), people)]


async def in_turn(
    connections: Sequence[Connection],
    requests: Sequence[bytes],
    per_second: float | None,
    then: Callable[[int, float], None] = lambda _, __: None,
) -> tuple[float, list[float]]:
    """Make all requests; return the seconds that took, and the milliseconds that each took.

    `then` is given each answer: its number, and when its time began.
    """
    todo = enumerate(requests)
    start = time.perf_counter()
    times: list[float] = []

    async def work(connection: Connection) -> None:
        for index, request in todo:
            began = time.perf_counter()
            if per_second:
                due = start + index / per_second
                await asyncio.sleep(max(0.0, due - began))
                began = due
            await connection.ask(request)
            times.append((time.perf_counter() - began) * 1e3)
            then(index, began)

    await asyncio.gather(*map(work, connections))
    return time.perf_counter() - start, times


async def post(port: str, target: str, connections: str, people: str, requests: str, per_second: str = "0") -> Any:  # noqa: ANN401, PLR0913, PLR0917 - as JSON; arguments of a command line
    """Post requests; return `seconds`, `p50` and `p99`."""
    made = [post_of(target, body) for body in bodies(int(people), int(requests))]
    async with connected(int(port), int(connections)) as those:
        seconds, times = await in_turn(those, list(islice(cycle(made), int(requests))), float(per_second))
    return {"seconds": seconds, **spread_of(times)}


async def lines(port: str, people: str) -> Any:  # noqa: ANN401 - JSON
    """Send lines and read their receipts; return `seconds`, from the first byte sent to the last received."""
    number = int(people)
    made = [encode(person) + b"\n" for person in PersonFactory.batch(min(number, DISTINCT))]
    pieces = [b"".join(made[start : start + PEOPLE_OF_A_PIECE]) for start in range(0, len(made), PEOPLE_OF_A_PIECE)]
    framed = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    incoming, outgoing = await asyncio.open_connection("127.0.0.1", int(port), limit=2**20)
    headers = "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n"

    async def write() -> None:
        outgoing.write(HEAD.format("POST", "/producers/people", headers).encode())
        for piece in islice(cycle(framed), number // PEOPLE_OF_A_PIECE):
            outgoing.write(piece)
            await outgoing.drain()
        outgoing.write(b"0\r\n\r\n")

    start = time.perf_counter()
    writing = asyncio.create_task(write())
    received, rest = 0, b""
    while not rest.endswith(b"0\r\n\r\n") and (piece := await incoming.read(2**20)):
        received += (rest[-len(RECEIPT) + 1 :] + piece).count(RECEIPT)
        rest = piece[-100:] if len(piece) >= len(b"0\r\n\r\n") else rest + piece
    seconds = time.perf_counter() - start
    await writing
    outgoing.close()
    if received != number:
        raise BenchmarkFailed(f"{number} lines were sent, and {received} receipts came")
    return {"seconds": seconds}


async def visible(producer_port: str, consumer_port: str, per_second: str, seconds: str) -> Any:  # noqa: ANN401 - JSON
    """Post at an even pace; return `answered` and `visible`, each with `p50`, `p99` and `max`."""
    rate = int(per_second)
    people = PersonFactory.batch(rate * int(seconds))
    requests = [post_of("/producers/people", encode(person)) for person in people]
    shown: list[float] = []
    following: list[asyncio.Task[None]] = []
    free: asyncio.Queue[Connection] = asyncio.Queue()

    async def follow(person_id: str, began: float) -> None:
        request = HEAD.format("GET", f"/consumers/messages?limit=1&key={person_id}", "").encode()
        looking = await free.get()
        while person_id.encode() not in (await looking.ask(request)).partition(b"\r\n\r\n")[2]:
            if (so_far := time.perf_counter() - began) > VISIBLE_WITHIN:
                raise BenchmarkFailed(f"a person was not visible within {VISIBLE_WITHIN:g} s")
            await asyncio.sleep(max(LOOK_AGAIN, so_far / 10))
        shown.append((time.perf_counter() - began) * 1e3)
        free.put_nowait(looking)

    def then(index: int, began: float) -> None:
        if index % max(1, rate // FOLLOWED_PER_SECOND) == 0:
            following.append(asyncio.create_task(follow(people[index].id, began)))

    async with connected(int(producer_port), CONNECTIONS) as those, connected(int(consumer_port), 16) as looking:
        for connection in looking:
            free.put_nowait(connection)
        _, answered = await in_turn(those, requests, rate, then)
        await asyncio.gather(*following)
    return {"answered": spread_of(answered), "visible": spread_of(shown)}


async def pushed(producer_port: str, consumer_port: str, per_second: str, seconds: str) -> Any:  # noqa: ANN401 - JSON
    """Post at an even pace; return `p50`, `p99` and `max` of the times until the live tail has brought each person."""
    rate = int(per_second)
    people = PersonFactory.batch(rate * int(seconds))
    requests = [post_of("/producers/people", encode(person)) for person in people]
    began: dict[str, float] = {}
    brought: dict[str, float] = {}
    incoming, outgoing = await asyncio.open_connection("127.0.0.1", int(consumer_port), limit=2**20)
    outgoing.write(HEAD.format("GET", "/consumers/messages/stream", "").encode())
    await incoming.readuntil(b"retry:")

    async def take() -> None:
        while len(brought) < len(people):
            key = KEY.search(await incoming.readuntil(b"\n\n"))
            if key:
                brought[key[1].decode()] = time.perf_counter()

    taking = asyncio.create_task(take())
    async with connected(int(producer_port), CONNECTIONS) as those:
        await in_turn(those, requests, rate, lambda index, since: began.update({people[index].id: since}))
    await asyncio.wait_for(taking, VISIBLE_WITHIN)
    outgoing.close()
    return spread_of([(brought[person_id] - since) * 1e3 for person_id, since in began.items()])


def spread_of(times: Sequence[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the most."""
    return {"p50": median(times), "p99": quantiles(times, n=100)[98], "max": max(times)}


if __name__ == "__main__":
    ways: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
        "post": post,
        "lines": lines,
        "visible": visible,
        "pushed": pushed,
    }
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        print(json.dumps(runner.run(ways[sys.argv[1]](*sys.argv[2:]))))
