"""Runs the services as an operator does, each in a process of its own, and looks at their topics as any client may."""

import asyncio
import itertools
import json
import os
import signal
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Self, TypeVar
from uuid import uuid4

import httpx
import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.record.util import calc_crc32c
from confidential import MARK
from fork_server import ForkedProcess

from contracts.stream import encode
from tests.event import Event
from tools.ports import free_ports

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
EVENT_SERVICES = ("-m", "tests.event_services")
REDRIVE = "/consumers/dead-letters/redrive"
PATIENCE = 60.0
"""Seconds that a condition may take: far more than it does, on a machine that does other things too."""
ENDED_WITHIN_S = 11.0
"""The contract's 10 s, and one more for a machine that does other things too."""
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""What a client of plain HTTP is given: by default each client reads the certificates of the system, for 30 ms."""
OF_AN_OPERATOR = {
    "PYTHONDONTWRITEBYTECODE",
    "LOG_LEVEL",
    "LOG_FORMAT",
    "HOST",
    "PRODUCER_URL",
    "CORS_ORIGINS",
    "API_KEY",
    "API_KEY_FILE",
    "API_KEY_READS",
    "METRICS_PUBLIC",
}
"""Variables that a shell may have set for other services than those under test."""
numbers = itertools.count(1)


def wait_until(condition: Callable[[], T], timeout: float = PATIENCE, what: str = "") -> T:
    """Return the condition's first true value, looking ever more seldom; fail after `timeout` seconds."""
    began = time.monotonic()
    while not (found := condition()):
        waited = time.monotonic() - began
        assert waited < timeout, f"waited {timeout:g} s in vain {what}"
        time.sleep(0.02 + min(waited / 10, 0.2))
    return found


def event(event_id: str | None = None, **fields: object) -> dict[str, Any]:
    """Return a valid event as a caller would write it, of some 270 bytes."""
    return {"id": event_id or str(uuid4()), "number": 36, "text": f"It rains on {MARK} Square. " * 5} | fields


def value_of(one: dict[str, Any]) -> bytes:
    """Return the record's value that the contract wants for an event."""
    return encode(Event(**one))


class Record(NamedTuple):
    """A record of a topic."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class Raw(NamedTuple):
    """A record to write as it is, right or wrong."""

    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()


MAX_LIST_RECORDS = 20_000
"""Events of a call: 16 MiB hold some 60,000."""


def _start(
    command: Sequence[str], root: Path, env: dict[str, str], log: IO[bytes]
) -> subprocess.Popen[bytes] | ForkedProcess:
    """Start a service: as it ships in a new Python, as tests change it from one that has imported all of it."""
    if sys.platform == "linux" and root == ROOT and not any(part.startswith("apps.") for part in command):
        return ForkedProcess(command, root, env, log)
    return subprocess.Popen([sys.executable, *command], cwd=root, env=env, stdout=log, stderr=subprocess.STDOUT)


class Service:
    """A service in a process of its own, on a port of its own where none is given; `http` calls it."""

    def __init__(
        self, name: str, command: Sequence[str], logs: Path, environment: dict[str, str], root: Path = ROOT
    ) -> None:
        given = environment.get(f"{name.upper()}_PORT")
        self.port = int(given) if given else free_ports(1)[0]
        self.log = logs / f"{next(numbers):03}-{name}.log"
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30, verify=NO_TLS)
        kept = {k: v for k, v in os.environ.items() if k not in OF_AN_OPERATOR}
        variables = {"PYTHONPATH": str(root), f"{name.upper()}_PORT": str(self.port), **environment}
        with self.log.open("wb") as log:
            self.process = _start(command, root, kept | variables, log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()

    def terminate(self) -> None:
        """Ask it to end, as an orchestrator does."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()

    def exit_status(self, timeout: float) -> int:
        """Wait for its end."""
        return self.process.wait(timeout)

    def get(self, path: str, **parameters: str | int) -> Any:  # noqa: ANN401 - JSON
        """Return the JSON of a successful answer."""
        answer = self.http.get(path, params=parameters)
        assert answer.is_success, answer.text
        return answer.json()

    def post(self, path: str, **options: Any) -> Any:  # noqa: ANN401 - httpx's options, JSON
        """Return the JSON of a successful answer."""
        answer = self.http.post(path, **options)
        assert answer.is_success, answer.text
        return answer.json()

    def send(self, number: int) -> list[dict[str, Any]]:
        """Have a producer send so many events, and return them."""
        events = [event() for _ in range(number)]
        for first in range(0, number, MAX_LIST_RECORDS):
            some = events[first : first + MAX_LIST_RECORDS]
            assert self.post("/producers/events", json=some)["delivered"] == len(some)
        return events

    def status(self) -> dict[str, Any]:
        """Return what a consumer says of itself."""
        status: dict[str, Any] = self.get("/consumers/status")
        return status

    def messages(self, **parameters: str | int) -> list[dict[str, Any]]:
        """Return the messages of a consumer's window."""
        messages: list[dict[str, Any]] = self.get("/consumers/messages", **parameters)["messages"]
        return messages

    def letters(self, **parameters: str | int) -> list[dict[str, Any]]:
        """Return the dead letters that a consumer lists, the newest first."""
        letters: list[dict[str, Any]] = self.get("/consumers/dead-letters", **parameters)["dead_letters"]
        return letters

    def redrive(self, **order: int) -> int:
        """Have a consumer send dead letters back; return how many it sent."""
        return int(self.post(REDRIVE, json=order)["redriven"])

    def partitions(self) -> list[int]:
        """Return the partitions that a consumer holds."""
        return [one["partition"] for one in self.status()["partitions"]]

    def answers(self, path: str, status: int) -> bool:
        """Return whether a call is answered with this status."""
        assert self.process.poll() is None, f"the service has ended: {self.log.read_text()}"
        try:
            return self.http.get(path).status_code == status
        except httpx.TransportError:
            return False

    def until_healthy(self) -> Self:
        """Wait until it says that it can do its job; a consumer then has its partitions."""
        return self.until_answers("/health-check", 200)

    def until_answers(self, path: str, status: int, timeout: float = PATIENCE) -> Self:
        """Wait until a call is answered with this status."""
        wait_until(lambda: self.answers(path, status), timeout, f"for {path} to answer {status}")
        return self

    def until_consumed(self, count: int) -> dict[str, Any]:
        """Wait until a consumer has seen so many records, good and bad, and return its status."""
        wait_until(lambda: self._seen() >= count, what=f"for {count} records, {self.status()}")
        return self.status()

    def _seen(self) -> int:
        status = self.status()
        return int(status["messages_consumed_count"]) + int(status["dead_lettered_count"])


@dataclass
class Pipeline:
    """A topic, its dead letters and a group that no other test uses, on a Kafka that may be shared.

    As a context manager it deletes its topics at the end.
    """

    bootstrap_servers: str
    logs: Path
    name: str = field(default_factory=lambda: f"test-{uuid4().hex[:12]}")
    clock: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.delete_topic(self.topic, self.dead_letter_topic, f"{self.dead_letter_topic}-redriven")

    @property
    def topic(self) -> str:
        return self.name

    @property
    def dead_letter_topic(self) -> str:
        return f"{self.name}-dlt"

    @property
    def group(self) -> str:
        return f"{self.name}-group"

    def producer(self, **environment: str) -> Service:
        """Start a producer."""
        return Service("producer", [*EVENT_SERVICES, "producer"], self.logs, self._environment(environment))

    def consumer(self, handler: str = "nothing", **environment: str) -> Service:
        """Start a consumer with a handler of `tests.handlers`."""
        return Service("consumer", [*EVENT_SERVICES, "consumer", handler], self.logs, self._environment(environment))

    def shipped(self, name: str, stream: str, **environment: str) -> Service:
        """Start a service as it ships, for the stream of its own that the variables name, like `PEOPLE`."""
        return Service(name, ["-m", f"apps.{name}"], self.logs, self._environment(environment, stream))

    def running(self, name: str, script: str, **environment: str) -> Service:
        """Start a service from a script of the tests."""
        return Service(name, [script], self.logs, self._environment(environment))

    def recording_consumer(self, ledger: Path, **environment: str) -> Service:
        """Start a consumer whose handler adds the ids of the events to a file."""
        return self.consumer("recording", LEDGER=str(ledger), **environment)

    @contextmanager
    def stuck_consumer(self, ledger: Path) -> Iterator[Service]:
        """Run a consumer whose handler has begun a batch, never ends, and ignores any cancellation."""
        with self.recording_consumer(ledger, STUBBORN="1") as consumer:
            consumer.until_healthy()
            self.write([Raw(value_of(event("one")), b"one")])
            wait_until(lambda: ledger.exists() and "begin" in ledger.read_text())
            yield consumer

    def create_topic(self, partitions: int, **configs: str) -> None:
        """Create the topic of events before a service does."""
        self._create(NewTopic(self.topic, partitions, 1, topic_configs=_dotted(configs)))

    def create_topics(self, partitions: int) -> None:
        """Create all topics before a service does, as an administrator would."""
        marks = NewTopic(f"{self.dead_letter_topic}-redriven", 1, 1, topic_configs={"cleanup.policy": "compact"})
        self._create(NewTopic(self.topic, partitions, 1), NewTopic(self.dead_letter_topic, partitions, 1), marks)

    def delete_topic(self, *topics: str) -> None:
        """Delete topics, whether they are there or not."""
        self.ask(lambda admin: admin.delete_topics(list(topics)))

    def alter_topic(self, topic: str = "", **configs: str) -> None:
        """Change the configuration of a topic (of events by default), and wait until the broker applies it."""
        wanted = _dotted(configs)
        changed = ConfigResource(ConfigResourceType.TOPIC, topic or self.topic, configs=wanted)

        def applied() -> dict[str, str]:
            (answer,) = self.ask(lambda admin: admin.describe_configs([changed]))
            return {name: value for name, value, *_ in answer.resources[0][4]}

        self.ask(lambda admin: admin.alter_configs([changed]))
        wait_until(lambda: applied() == wanted)

    def write(self, records: Sequence[Raw], partition: int = 0) -> list[Record]:
        """Write records as they are, in order, and return how they stand on the topic."""
        return self.write_to([(raw, partition) for raw in records])

    def write_to(self, records: Sequence[tuple[Raw, int]]) -> list[Record]:
        """Write records to partitions, in order, each with a timestamp of its own."""

        async def write() -> list[Record]:
            written = []
            async with AIOKafkaProducer(bootstrap_servers=self.bootstrap_servers, max_request_size=2**21) as producer:
                for raw, partition in records:  # each a batch: `send` refuses a record with neither key nor value
                    batch = producer.create_batch()
                    self.clock = max(self.clock + 1, time.time_ns() // 1_000_000)
                    batch.append(timestamp=self.clock, key=raw.key, value=raw.value, headers=list(raw.headers))
                    at = await (await producer.send_batch(batch, self.topic, partition=partition))
                    written.append(Record(partition, at.offset, self.clock, raw.key, raw.value, raw.headers))
            return written

        return asyncio.run(write())

    def write_batch(
        self,
        *raws: Raw,
        partition: int = 0,
        timestamp: int | None = None,
        topic: str = "",
        mend: Callable[[bytes], bytes] | None = None,
        **options: Any,  # noqa: ANN401 - of aiokafka's producer
    ) -> int:
        """Write records in one batch, whose bytes `mend` may change; return the offset of the last."""

        async def write() -> int:
            async with AIOKafkaProducer(bootstrap_servers=self.bootstrap_servers, **options) as producer:
                batch = producer.create_batch()
                for raw in raws:
                    assert batch.append(timestamp=timestamp, key=raw.key, value=raw.value, headers=list(raw.headers))
                if mend:
                    changed = bytearray(mend(batch._build()))
                    struct.pack_into(">I", changed, 17, calc_crc32c(bytes(changed[21:])))
                    batch._buffer = changed
                at = await (await producer.send_batch(batch, topic or self.topic, partition=partition))
                return int(at.offset) + len(raws) - 1

        return in_time(write())

    def write_with_a_wrong_header_name(self, value: bytes) -> None:
        """Write a record with a header whose name is no UTF-8, as clients in other languages can."""
        raw = Raw(value, b"key", (("right", None), ("ZZ", b"\xff")))
        self.write_batch(raw, mend=lambda built: built.replace(b"\x04ZZ", b"\x04\xffZ"))

    def write_what_only_java_decompresses(self, value: bytes, partition: int = 0) -> None:
        """Write a record that is compressed, and followed by bytes that Java passes over."""

        def followed(built: bytes) -> bytes:
            longer = built + b"behind it"
            return longer[:8] + struct.pack(">i", len(longer) - 12) + longer[12:]

        self.write_batch(Raw(value, b"key"), partition=partition, mend=followed, compression_type="gzip")

    def fill(self, count: int, partition: int = 0) -> None:
        """Write so many events to a partition, quickly."""
        value = value_of(event("one of many"))

        async def fill() -> None:
            async with AIOKafkaProducer(bootstrap_servers=self.bootstrap_servers, max_batch_size=2**20) as producer:
                left = count
                while left:
                    batch = producer.create_batch()
                    while left and batch.append(timestamp=None, key=None, value=value):
                        left -= 1
                    await (await producer.send_batch(batch, self.topic, partition=partition))

        asyncio.run(fill())

    def delete_before(self, offsets: Mapping[int, int], topic: str = "") -> None:
        """Delete the records before an offset in each partition of a topic, as retention does."""
        before = {TopicPartition(topic or self.topic, p): RecordsToDelete(offset) for p, offset in offsets.items()}
        self.ask(lambda admin: admin.delete_records(before))

    def records(self, topic: str = "") -> list[Record]:
        """Return all records of a topic (of events by default), partition by partition, each in order."""
        return asyncio.run(self._read(topic or self.topic))

    def records_by_key(self) -> dict[str, Record]:
        """Return the last record of each key."""
        return {record.key.decode(): record for record in self.records() if record.key is not None}

    def end_offsets(self) -> dict[int, int]:
        """Return the offset behind the last record of each partition of the topic of events."""

        async def ask() -> dict[int, int]:
            async with AIOKafkaConsumer(self.topic, bootstrap_servers=self.bootstrap_servers) as client:
                return {tp.partition: o for tp, o in (await client.end_offsets(client.assignment())).items()}

        return asyncio.run(ask())

    def committed(self) -> int:
        """Return how many records the group has committed, of all partitions together."""
        try:
            offsets = self.ask(lambda admin: admin.list_consumer_group_offsets(self.group))
        except GroupCoordinatorNotAvailableError:  # the first group of a new Kafka waits for its topic
            return 0
        return sum(at.offset for tp, at in offsets.items() if tp.topic == self.topic)

    def ask(self, question: Callable[[AIOKafkaAdminClient], Coroutine[Any, Any, T]]) -> T:
        """Ask Kafka something, or have it do something, as an administrator."""
        return ask(self.bootstrap_servers, question)

    def _create(self, *topics: NewTopic) -> None:
        for error in self.ask(lambda admin: admin.create_topics(list(topics))).topic_errors:
            assert error[1] == 0, error

    def _environment(self, more: dict[str, str], stream: str = "EVENTS") -> dict[str, str]:
        own = {
            "KAFKA_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            f"{stream}_TOPIC": self.topic,
            f"{stream}_DEAD_LETTER_TOPIC": self.dead_letter_topic,
            f"{stream}_GROUP_ID": self.group,
        }
        return own | more

    async def _read(self, topic: str) -> list[Record]:
        found: list[Record] = []
        options = {
            "bootstrap_servers": self.bootstrap_servers,
            "auto_offset_reset": "earliest",
            "isolation_level": "read_committed",  # what an aborted redrive wrote is not there for anyone
        }
        async with AIOKafkaConsumer(topic, **options) as client:
            ends = await client.end_offsets(client.assignment())
            while any([await client.position(tp) < end for tp, end in ends.items()]):
                for records in (await client.getmany(timeout_ms=500)).values():
                    found += [
                        Record(r.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in records
                    ]
        return sorted(found, key=lambda record: record[:2])


class Lines:
    """A call of `POST /producers/events` with an event a line: receipts are read while lines are sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def opened(cls, producer: Service) -> AsyncIterator[Self]:
        """Begin the call; the end of the block closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", producer.port)
        writer.write(
            b"POST /producers/events HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def send(self, *lines: bytes) -> None:
        """Send whole lines."""
        data = b"".join(line + b"\n" for line in lines)
        self._writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self._writer.drain()

    async def end(self) -> None:
        """Say that no more lines come."""
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def receipts(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the answer's lines as they come; the status must be 200."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        rest = b""
        while size := int(await self._reader.readline(), 16):
            *lines, rest = (rest + (await self._reader.readexactly(size + 2))[:-2]).split(b"\n")
            for line in lines:
                yield json.loads(line)
        assert rest == b""


def divided(*consumers: Service, partitions: int = 6) -> bool:
    """Return whether each of the consumers holds partitions, and each partition is held once."""
    if not all(consumer.answers("/livez", 200) for consumer in consumers):
        return False
    held = [consumer.partitions() for consumer in consumers]
    return all(held) and sorted(itertools.chain(*held)) == list(range(partitions))


def ended(process: psutil.Process) -> bool:
    """Return whether a process has ended, also one that process 1 has not taken note of yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _dotted(configs: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "."): value for name, value in configs.items()}


def ask(bootstrap_servers: str | Sequence[str], question: Callable[[AIOKafkaAdminClient], Coroutine[Any, Any, T]]) -> T:
    """Ask a Kafka something, or have it do something, as an administrator who has nothing to do with the services."""

    async def answer() -> T:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
        await admin.start()
        try:
            return await question(admin)
        finally:
            await admin.close()

    return in_time(answer())


def in_time(work: Coroutine[Any, Any, T], timeout: float = PATIENCE) -> T:
    """Run a coroutine; fail after `timeout` seconds."""
    return asyncio.run(asyncio.wait_for(work, timeout))


def assert_end_well(*services: Service) -> None:
    """Have services end, as an orchestrator does; they do so in time, with status 0."""
    began = time.monotonic()
    for service in services:
        service.terminate()
    for service in services:
        assert service.exit_status(timeout=30) == 0
        assert time.monotonic() - began < ENDED_WITHIN_S


@contextmanager
def both(pipeline: Pipeline, **environment: str) -> Iterator[tuple[Service, Service]]:
    """Run a producer and a consumer, and wait until both are healthy."""
    with pipeline.producer(**environment) as producer, pipeline.consumer(**environment) as consumer:
        producer.until_healthy()
        consumer.until_healthy()
        yield producer, consumer
