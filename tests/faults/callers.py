"""Those who send events all the while: lists, lines and made-up ones by the producers, and poison past them."""

import asyncio
import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Self

import httpx
import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from ledger import ALONE, RAW, Ledger
from marks import ACCEPTED
from receipts import DELIVERED, NOT_WRITTEN, UNKNOWN, Receipt
from services import Lines, Raw, Service, event, value_of

from tests.event import Event

LIMIT = 10.0
"""Seconds within which every request is answered, by the contract."""
FEW = 20
"""Keys that callers share."""
REFUSED_SHARE = 0.002
"""Share of events whom the handler refuses."""
MAX_LIST_RECORDS, MAX_MADE, MAX_PIECE_RECORDS = 400, 1_000, 60
"""Events of a list, that are made by one call, and that are sent as lines at once."""
PATIENCE = 90.0
"""Seconds after which a caller gives up: long past the limit, so that what hangs is measured."""
BROKEN_OFF = "broken_off"
"""What the last line of an answer says when the service reads no more of the body, like one that is ending."""


class Answer(msgspec.Struct):
    """What a producer answers, if it is not a list of events."""

    delivered: int = 0
    receipts: list[Receipt] | None = None


decode_answer = msgspec.json.Decoder(Answer).decode
decode_events = msgspec.json.Decoder(list[Event]).decode


class Member:
    """An instance of a service that may be started again, on another port, and frozen for a while."""

    def __init__(self, number: int, start: Callable[[], Service]) -> None:
        self.number = number
        self.service = start()
        self._start = start
        self._frozen: list[tuple[float, float]] = []
        self._struck = 0
        self._mended = 0.0

    @property
    def name(self) -> str:
        """What its log is called."""
        return self.service.log.stem

    def close(self) -> None:
        """End its process."""
        self.service.__exit__()

    def restart(self) -> None:
        """Start it again, after its process has ended."""
        self.service = self._start()

    @contextmanager
    def struck(self) -> Iterator[None]:
        """Something is done to it for as long as the block takes: what it says then, and soon after, proves little."""
        self._struck += 1
        try:
            yield
        finally:
            self._struck -= 1
            self._mended = time.monotonic()

    def unharmed(self, seconds: float) -> bool:
        """Return whether nothing was done to it for so long."""
        return not self._struck and time.monotonic() - self._mended > seconds

    def note_frozen(self, since: float) -> None:
        """Note that its process did nothing from then until now, by no fault of its own."""
        self._frozen.append((since, time.monotonic()))

    def awake(self, since: float, until: float) -> float:
        """Return the seconds of this time in which it was not frozen."""
        return until - since - sum(max(0.0, min(until, b) - max(since, a)) for a, b in list(self._frozen))


class Crowd:
    """Threads that send until the end of the block, at this rate together as long as they are answered."""

    def __init__(self, ledger: Ledger, producers: Sequence[Member], rate: float, seed: int) -> None:
        kinds = (call_with_few_keys, call_with_many_keys, call_to_make, call_with_lines)
        rate /= len(kinds) * len(producers)
        self._enough = threading.Event()
        self._ledger = ledger
        self._threads = []
        for number, (producer, kind) in enumerate(itertools.product(producers, kinds)):
            http = httpx.Client(timeout=PATIENCE)
            caller = Caller(ledger, producer, number, rate, Random(f"{seed}-{number}"), self._enough, http)
            self._threads.append(threading.Thread(target=self._run, args=(caller, kind), name=kind.__name__))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)

    def _run(self, caller: "Caller", call: Callable[["Caller"], int]) -> None:
        try:
            with caller.http:
                due = time.monotonic()
                while not self._enough.is_set():
                    due = max(due, time.monotonic() - 5) + call(caller) / caller.rate
                    self._enough.wait(max(due - time.monotonic(), 0.01))
        except Exception as error:  # noqa: BLE001 - a caller that ends unseen would make the run easier
            self._ledger.complain(f"{threading.current_thread().name} has ended: {error!r}")


@dataclass
class Caller:
    """One who sends to one producer, one call after the other."""

    ledger: Ledger
    member: Member
    number: int
    rate: float
    chance: Random
    enough: threading.Event
    http: httpx.Client

    def claim(self, keys: Sequence[int]) -> range:
        """Give numbers to events with these keys; the handler will refuse some of them."""
        return self.ledger.claim(self.number, keys, [self.chance.random() < REFUSED_SHARE for _ in keys])

    def post(self, path: str, content: bytes = b"") -> tuple[int, Answer, bytes] | None:
        """Post, and return status and answer; None when there was none. Raises `ConnectError`: nothing was sent."""
        url = f"http://127.0.0.1:{self.member.service.port}{path}"
        began = time.monotonic()
        try:
            answer = self.http.post(url, content=content, headers={"content-type": "application/json"})
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise
        except httpx.TransportError:
            return None
        finally:
            self.ledger.note_request(self.member.awake(began, time.monotonic()))
        return self._read(path, answer)

    def _read(self, path: str, answer: httpx.Response) -> tuple[int, Answer, bytes]:
        status, body = answer.status_code, answer.content
        if status not in {201, 207, 503} or (status == 503 and "retry-after" not in answer.headers):
            self.ledger.complain(f"{path}: {status} {dict(answer.headers)} {answer.text[:300]}")
        kind = answer.headers.get("content-type", "")
        if status == 201 and body[:1] == b"[":
            return status, Answer(), body
        return status, decode_answer(body) if kind.endswith("json") else Answer(), body


def call_with_few_keys(caller: Caller) -> int:
    """Send a list of events whose keys others have too."""
    count = caller.chance.randint(1, MAX_LIST_RECORDS)
    return send_list(caller, caller.claim([caller.chance.randrange(FEW) for _ in range(count)]))[0]


def call_with_many_keys(caller: Caller) -> int:
    """Send a list of events, each with a key of its own."""
    return send_list(caller, caller.claim([ALONE] * caller.chance.randint(1, MAX_LIST_RECORDS)))[0]


def send_list(caller: Caller, numbers: range) -> tuple[int, bool]:
    """Send events and note the outcome of each; return how many they were, and whether all were delivered."""
    ledger = caller.ledger
    body = b"[" + b",".join(map(ledger.event, numbers)) + b"]"
    try:
        answered = caller.post("/producers/events", body)
    except httpx.TransportError:
        ledger.settle_all(numbers, NOT_WRITTEN)
        return len(numbers), False
    if answered is None:
        return len(numbers), False
    status, answer, text = answered
    if answer.receipts is None:
        ledger.settle_all(numbers, NOT_WRITTEN)
        if status != 503:
            ledger.complain(f"{status} without receipts: {text[:300]!r}")
        return len(numbers), False
    if len(answer.receipts) != len(numbers):
        ledger.complain(f"{len(answer.receipts)} receipts for {len(numbers)} events: {text[:300]!r}")
    for number, receipt in zip(numbers, answer.receipts, strict=False):
        ledger.settle(number, receipt)
    delivered = sum(receipt.fate == DELIVERED for receipt in answer.receipts)
    expected = 201 if delivered == len(numbers) else 207 if delivered else 503
    if (status, answer.delivered) != (expected, delivered):
        ledger.complain(
            f"{status} and {answer.delivered} delivered, but the receipts say {delivered} of {len(numbers)}"
        )
    return len(numbers), status == 201


def call_to_make(caller: Caller) -> int:
    """Have events made up."""
    made_up, count = caller.ledger.made_up, caller.chance.randint(1, MAX_MADE)
    try:
        answered = caller.post(f"/producers/events/generate?number={count}")
    except httpx.TransportError:
        return count
    if answered is None:
        made_up.note_unanswered(count)
        return count
    status, answer, body = answered
    events = decode_events(body) if status == 201 else []
    receipts = answer.receipts or []
    made_up.note_list(caller.number, events)
    made_up.note_receipts(receipts)
    # after a failure no more are made, and a slow machine makes fewer at a time
    ends_early = len(receipts) < count and any(receipt.fate != DELIVERED for receipt in receipts)
    if len(events or receipts) != count and not ends_early and (receipts or status != 503):
        caller.ledger.complain(f"{status} with {len(events)} events and {len(receipts)} receipts of {count}")
    return count


def call_with_lines(caller: Caller) -> int:
    """Send events a line each, for some seconds, and read the receipts meanwhile."""
    return asyncio.run(Stream(caller).send(caller.chance.randint(1, 20)))


class Stream:
    """A call with an event a line."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._waiting: deque[tuple[int, float]] = deque()
        self._sent = 0

    async def send(self, seconds: float) -> int:
        """Send lines for so many seconds, and note the receipts; return how many lines were sent."""
        member = self._caller.member
        service = member.service
        try:
            async with asyncio.timeout(seconds + PATIENCE), Lines.opened(service) as lines:
                reading = asyncio.create_task(self._read(lines))
                try:
                    await self._write(lines, time.monotonic() + seconds, reading)
                    await reading
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
            if self._waiting and service is member.service and member.unharmed(1):
                self._complain(f"ended without {len(self._waiting)} receipts")
        except TimeoutError:
            self._complain("hangs")
        except (OSError, EOFError, ValueError):  # cut off, also in the middle of a line
            pass
        return self._sent

    async def _write(self, lines: Lines, until: float, reading: "asyncio.Task[None]") -> None:
        caller = self._caller
        while time.monotonic() < until and not reading.done() and not caller.enough.is_set():
            count = caller.chance.randint(1, MAX_PIECE_RECORDS)
            numbers = caller.claim([caller.chance.choice((ALONE, caller.chance.randrange(FEW))) for _ in range(count)])
            now = time.monotonic()
            self._waiting.extend((number, now) for number in numbers)
            self._sent += count
            await lines.send(*map(caller.ledger.event, numbers))
            await asyncio.sleep(count / caller.rate / 2)
        if not reading.done():
            await lines.end()

    async def _read(self, lines: Lines) -> None:
        async for line in lines.receipts():
            if line.get("outcome") == BROKEN_OFF:
                return
            if not self._waiting:
                self._complain(f"has a receipt too many: {line}")
                return
            number, since = self._waiting.popleft()
            self._caller.ledger.settle(number, msgspec.convert(line, Receipt))
            self._caller.ledger.note_line(self._caller.member.awake(since, time.monotonic()))

    def _complain(self, what: str) -> None:
        self._caller.ledger.complain(f"a stream of {self._sent} lines {what}")


class Poisoner:
    """Writes past the services, until the end of the block: bad records of every kind, and odd ones that are good."""

    def __init__(
        self, ledger: Ledger, bootstrap_servers: Sequence[str], topic: str, partitions: int, seed: int
    ) -> None:
        self._ledger = ledger
        self._bootstrap_servers = list(bootstrap_servers)
        self._topic = topic
        self._partitions = partitions
        self._chance = Random(f"{seed}-poison")
        self._enough = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="poisoner")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join(PATIENCE)

    async def _run(self) -> None:
        while not self._enough.is_set():
            options = {"acks": "all", "enable_idempotence": True, "max_batch_size": 1 << 19}
            try:
                async with AIOKafkaProducer(bootstrap_servers=self._bootstrap_servers, **options) as producer:
                    while not self._enough.is_set():
                        await self._write(producer)
                        await asyncio.sleep(POISON_EVERY)
            except (KafkaError, OSError):
                await asyncio.sleep(1)

    async def _write(self, producer: AIOKafkaProducer) -> None:
        """Write some records as one batch, and note where they stand once that is known."""
        records = [self._bad() if self._chance.random() < POISON_SHARE else self._odd() for _ in range(4)]
        partition = self._chance.randrange(self._partitions)
        batch = producer.create_batch()
        now = time.time_ns() // 1_000_000
        for _, raw in records:
            batch.append(timestamp=now, key=raw.key, value=raw.value, headers=list(raw.headers))
        offset = -1
        try:
            written = await (await producer.send_batch(batch, self._topic, partition=partition))
            offset = written.offset
        finally:
            for at, (number, raw) in enumerate(records):
                place = -1 if offset < 0 else offset + at
                if number is None:
                    self._ledger.bad.append((raw, partition, place))
                elif offset >= 0:
                    self._ledger.sent.set(number, fate=DELIVERED, partition=partition, offset=place, timestamp=now)
                else:
                    self._ledger.sent.set(number, fate=UNKNOWN)

    def _bad(self) -> tuple[None, Raw]:
        value = self._chance.choice(BAD)
        return None, Raw(value, self._chance.choice(KEYS), self._chance.choice(HEADERS))

    def _odd(self) -> tuple[int, Raw]:
        (number,) = self._ledger.claim(POISONER, [RAW], [False])
        name = f"{ACCEPTED}{number}"
        value = self._chance.choice(
            (value_of(event(text=name)), json.dumps(event(text=name, no_field_of_anyone="x")).encode())
        )
        raw = self._ledger.raw[number] = Raw(value, self._chance.choice(KEYS), self._chance.choice(HEADERS))
        return number, raw


POISONER = 1_000
"""The number of the poisoner as a caller."""
POISON_EVERY = 0.4
"""Seconds between two batches."""
POISON_SHARE = 0.6
BAD: Sequence[bytes | None] = (
    b"not json",
    b"",
    None,
    b"null",
    b'{"id": 1}',
    b"[]",
    b"\x00\xff\xfe",
    b"[" * 20_000,
    json.dumps(event(text="bad", number=999)).encode(),
    json.dumps(event(text="bad", number="36")).encode(),
    json.dumps(event(text="bad", id="")).encode(),
    value_of(event("poison", text="bad")).replace(b"bad", b"\xff\xfe"),
    value_of(event("poison", text="bad"))[:-1],
)
KEYS: Sequence[bytes | None] = (None, b"", b"k0", b"poison", b"\xff\x00")
HEADERS: Sequence[tuple[tuple[str, bytes | None], ...]] = (
    (),
    (("null", None),),
    (("binary", b"\x00\xff\xfe"), ("twice", b"1"), ("twice", b"2"), ("", b""), ("\u00e9", b"\xc3\xa9")),
)
