import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random

import httpx
import psutil
import pytest
from fuzzing import KEY, Fuzzing, Services
from mutations import bent
from services import NO_TLS, PATIENCE, Service, in_time

MANY = 700
"""Connections at a time: more than wait for a request at a time, fewer than a process may have files open."""
MEGABYTE = 1024 * 1024
ENDLESS_BYTES = 24 * MEGABYTE
"""Bytes after which what never ends is broken off, three times."""
ROOM = 64 * MEGABYTE
"""Bytes by which a service may grow meanwhile: a JSON body may have 16 MiB, and three are in memory at a time."""

GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
POST = (
    b"POST /producers/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"X-API-Key: " + KEY.encode() + b"\r\n"
)
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"

REFUSED = {
    "no HTTP": b"hello\r\n\r\n",
    "binary": bytes(range(256)) * 4,
    "the hello of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9": b"GET /livez HTTP/9.9\r\n\r\n",
    "an unknown method": b"STEAL /livez HTTP/1.1\r\n\r\n",
    "a path that is not ASCII": b"GET /\xff HTTP/1.1\r\n\r\n",
    "a header without a colon": GET + b"X\r\n\r\n",
    "a space before the colon": GET + b"Content-Length : 5\r\n\r\n",
    "a header with a null byte": GET + b"X: a\x00b\r\n\r\n",
    "a header with a carriage return": GET + b"X: a\rb\r\n\r\n",
    "a length below 0": POST + b"Content-Length: -1\r\n\r\n",
    "a length that is none": POST + b"Content-Length: five\r\n\r\n",
    "a length too large for 64 bits": POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 0\r\n\r\n[]" + NEXT,
    "a length and chunks": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + NEXT,
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + NEXT,
    "an encoding behind chunks": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + NEXT,
    "a header that goes on with a length": GET + b"X: a\nContent-Length: 3\r\n\r\nabc",
}
CUT_OFF = {
    "a chunk without a length": CHUNKED + b"\r\n[]\r\n0\r\n\r\n",
    "a chunk with a wrong length": CHUNKED + b"1\r\n[]\r\n0\r\n\r\n",
    "a chunk with a length that is none": CHUNKED + b"zz\r\n[]\r\n0\r\n\r\n",
    "a chunk with a length below 0": CHUNKED + b"-2\r\n[]\r\n0\r\n\r\n",
    "a chunk with a length too large for 64 bits": CHUNKED + b"f" * 17 + b"\r\n[]\r\n0\r\n\r\n",
}
ENDLESS = {
    "an address": (b"GET /", b"a" * 65_536),
    "a query": (b"GET /livez?", b"a=b&" * 16_384),
    "a header": (GET + b"X: ", b"a" * 65_536),
    "headers": (GET, b"X-Y: z\r\n" * 8_192),
    "an extension of a chunk": (CHUNKED + b"1;", b"a" * 65_536),
    "trailers": (CHUNKED + b"2\r\n[]\r\n0\r\n", b"X-Y: z\r\n" * 8_192),
    "a body": (POST + b"Content-Length: 10000000000\r\n\r\n", b" " * 65_536),
    "a chunk": (CHUNKED + b"fffffff0\r\n", b" " * 65_536),
    "chunks of a byte": (CHUNKED, b"1\r\n \r\n" * 100_000),
    "a line of JSON": (CHUNKED.replace(b"json", b"x-ndjson") + b"fffffff0\r\n", b" " * 65_536),
    "requests whose answers are not read": (b"", (GET + b"\r\n") * 1_000),
}
BEGUN = [GET, GET[:9], POST + b"Content-Length: 100\r\n\r\n[", CHUNKED + b"5\r\n[", CHUNKED + b"1\r\n[\r\n", b""]


@pytest.fixture(params=["producer", "consumer"])
def service(request: pytest.FixtureRequest, services: Services) -> Service:
    return services.producer if request.param == "producer" else services.consumer


def size_of(service: Service) -> int:
    """Return the bytes of memory that a service takes."""
    return int(psutil.Process(service.process.pid).memory_info().rss)


def said_by(service: Service, sent: bytes) -> bytes:
    """Send something and return all that comes back until the service closes the connection."""
    said = b""
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as connection, suppress(ConnectionError):
        connection.sendall(sent)
        while more := connection.recv(65_536):
            said += more
    return said


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_request_is_refused_and_nothing_behind_it_is_done(sent: bytes, service: Service) -> None:
    said = said_by(service, sent)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1") == 1
    assert service.answers("/livez", 200)


@pytest.mark.parametrize("sent", CUT_OFF.values(), ids=CUT_OFF.keys())
def test_a_body_that_breaks_off_reaches_nobody(sent: bytes, services: Services) -> None:
    said = said_by(services.producer, sent)
    assert said[:13] in {b"", b"HTTP/1.1 400 "}
    assert services.producer.answers("/livez", 200)


@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_takes_no_memory(name: str, services: Services) -> None:
    service = services.producer  # which takes the larger bodies
    begin, more = ENDLESS[name]
    before = size_of(service)
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as connection:
            connection.settimeout(1)  # the service may well stop reading
            with suppress(OSError):
                connection.sendall(begin)
                for _ in range(ENDLESS_BYTES // len(more)):
                    connection.sendall(more)
            assert service.answers("/livez", 200)
    assert size_of(service) < before + ROOM


def test_others_are_served_while_hundreds_of_connections_send_a_byte_now_and_then(service: Service) -> None:
    before = size_of(service)
    in_time(_slowly(service))
    assert size_of(service) < before + ROOM


async def _slowly(service: Service) -> None:
    async with slow_connections(service):
        for path in ["/livez", "/schema/openapi.json", "/asyncapi.json"] * 7:
            place, own = f"http://127.0.0.1:{service.port}", {"X-API-Key": KEY}
            async with httpx.AsyncClient(base_url=place, headers=own, timeout=PATIENCE, verify=NO_TLS) as newcomer:
                assert (await newcomer.get(path)).status_code == 200


@asynccontextmanager
async def slow_connections(service: Service) -> AsyncIterator[None]:
    """Hold hundreds of connections: some begun, some half done, some idle, each sending a byte now and then."""
    connections = []
    for number in range(MANY):
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(BEGUN[number % len(BEGUN)])
        connections.append(writer)

    async def trickle() -> None:
        while True:
            for writer in connections:
                if not writer.is_closing():
                    writer.write(b"a")
            await asyncio.sleep(0.2)

    trickling = asyncio.create_task(trickle())
    try:
        yield
    finally:
        trickling.cancel()
        for writer in connections:
            writer.transport.abort()


def test_bent_requests_by_the_thousand_leave_the_service_serving(service: Service, fuzzing: Fuzzing) -> None:
    random = Random(fuzzing.seed)
    straight = [GET + b"\r\n", CHUNKED + b"2\r\n[]\r\n0\r\n\r\n", NEXT * 3, *REFUSED.values()]

    async def send_one(sent: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        with suppress(OSError):
            writer.write(sent)
            writer.write_eof()
            while said := await reader.read(65_536):
                assert b"HTTP/1.1 500" not in said
        writer.transport.abort()

    async def send_all() -> None:
        for _ in range(2 * fuzzing.examples):
            await asyncio.gather(*(send_one(bent(random, random.choice(straight))) for _ in range(50)))
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{service.port}", timeout=PATIENCE, verify=NO_TLS
            ) as client:
                assert (await client.get("/livez")).status_code == 200

    before = size_of(service)
    asyncio.run(send_all())
    assert size_of(service) < before + ROOM
