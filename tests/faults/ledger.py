"""What was sent and answered, what stands in the log, what was handled, and whether these agree.

It stands outside of the services and judges by its own marks in the records, not by the services' code. It keeps a row
of numbers a record: two and a half million of them take 750 MB while they are compared.
"""

import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from made_up import MadeUp
from marks import ACCEPTED, BATCH, MADE_UP, REFUSED, digest_of
from receipts import DELIVERED, NOT_WRITTEN, UNANSWERED, UNKNOWN, Findings, Numbers, Receipt, Table
from services import Raw

from contracts import dead_letter

TEXT = re.compile(rb'"text": ?"([#!])(\d+)"')
MADE = re.compile(rb'\{"id":"([^"]+)","number":\d+,"text":"([A-Za-z]{10,})"\}')
"""What a producer makes up."""
EVENT = b'{"id":"%s","number":36,"text":"%s"}'

ALONE = -1
"""The key number of a record whose key no other has."""
RAW = -2
"""The key number of a record that was written past the services; its key stands in `Ledger.raw`."""


class Ledger:
    """What was sent, and what the senders received for it. Any thread may write."""

    def __init__(self) -> None:
        self.sent = Table("caller", "key", "refused", "fate", "partition", "offset", "timestamp")
        self.made_up = MadeUp()
        self.raw: dict[int, Raw] = {}
        self.bad: list[tuple[Raw, int, int]] = []
        self.complaints: list[str] = []
        self.slowest = 0.0
        self.slowest_line = 0.0
        self.requests = 0
        self._lock = threading.Lock()

    def claim(self, caller: int, keys: Iterable[int], refused: Iterable[bool]) -> range:
        """Give numbers to records that are about to be sent in this order."""
        with self._lock:
            start = len(self.sent)
            for key, is_refused in zip(keys, refused, strict=True):
                self.sent.add(
                    caller=caller,
                    key=key,
                    refused=is_refused,
                    fate=UNANSWERED,
                    partition=-1,
                    offset=-1,
                    timestamp=-1,
                )
            return range(start, len(self.sent))

    def key_of(self, number: int) -> bytes | None:
        """Return the key of the record with this number."""
        key = self.sent.get(number, "key")
        if key == RAW:
            return self.raw[number].key
        return b"n%d" % number if key == ALONE else b"k%d" % key

    def event(self, number: int) -> bytes:
        """Return the event with this number, as JSON."""
        mark = REFUSED if self.sent.get(number, "refused") else ACCEPTED
        return EVENT % (self.key_of(number) or b"null", b"%s%d" % (mark.encode(), number))

    def settle(self, number: int, receipt: Receipt) -> None:
        """Note what a producer said of a record."""
        if receipt.id.encode() != self.key_of(number):
            self.complain(f"the receipt of {receipt.id!r} stands where that of record {number} should")
            return
        self.sent.set(
            number,
            fate=receipt.fate,
            partition=receipt.partition,
            offset=receipt.offset,
            timestamp=receipt.timestamp,
        )

    def settle_all(self, numbers: Iterable[int], fate: int) -> None:
        """Note one fate for several records."""
        for number in numbers:
            self.sent.set(number, fate=fate)

    def note_request(self, seconds: float) -> None:
        """Note how long a request took."""
        with self._lock:
            self.requests += 1
            self.slowest = max(self.slowest, seconds)

    def note_line(self, seconds: float) -> None:
        """Note how long a line of a stream waited for its receipt."""
        self.slowest_line = max(self.slowest_line, seconds)

    def complain(self, what: str) -> None:
        """Note what must not have happened."""
        self.complaints.append(what)

    def written(self) -> int:
        """Return how many records were claimed so far."""
        return len(self.sent)


class Bad(NamedTuple):
    """A record in the log that must be dead-lettered."""

    timestamp: int
    raw: Raw


class Log:
    """What stands in the topic: records of events as rows, good and refused ones; all that is bad also whole."""

    def __init__(self, ledger: Ledger) -> None:
        self.good = Table("identity", "partition", "offset", "timestamp")
        self.refused = Table("identity", "partition", "offset", "timestamp")
        self.made = Table("identity", "partition", "offset", "timestamp", "key")
        self.bad: dict[tuple[int, int], Bad] = {}
        self.wrong: list[str] = []
        self._ledger = ledger

    async def read(self, bootstrap_servers: Sequence[str], topic: str) -> None:
        """Read the whole topic, as its consumers do."""
        async for partition, offset, timestamp, raw in records_of(bootstrap_servers, topic):
            self._note(partition, offset, timestamp, raw)

    def _note(self, partition: int, offset: int, timestamp: int, raw: Raw) -> None:
        value = raw.value or b""
        if text := TEXT.search(value):
            identity = int(text[2])
            self._check(identity, raw, f"{partition}/{offset}")
            if text[1] == REFUSED.encode():
                self.bad[partition, offset] = Bad(timestamp, raw)
                self.refused.add(identity=identity, partition=partition, offset=offset, timestamp=timestamp)
                return
        elif made := MADE.fullmatch(value):
            identity = digest_of(made[2])
            if raw.key != made[1] or raw.headers:
                self.wrong.append(f"{partition}/{offset} is {raw}, not as it was made")
            key = digest_of(made[1])
            self.made.add(identity=identity, partition=partition, offset=offset, timestamp=timestamp, key=key)
        else:
            self.bad[partition, offset] = Bad(timestamp, raw)
            return
        self.good.add(identity=identity, partition=partition, offset=offset, timestamp=timestamp)

    def _check(self, number: int, raw: Raw, place: str) -> None:
        """A record that was sent stands in the log as it was sent, with its key."""
        if number >= len(self._ledger.sent):
            self.wrong.append(f"{place} was never sent: {raw}")
            return
        expected = self._ledger.raw.get(number)
        if expected is None:
            expected = Raw(self._ledger.event(number), self._ledger.key_of(number))
        if raw != expected:
            self.wrong.append(f"{place} is {raw}, not {expected}")


class Handled:
    """What the handlers did: their files, which may still grow."""

    def __init__(self, folder: Path) -> None:
        self.batches: list[tuple[int, int, Numbers]] = []
        self._folder = folder
        self._read: dict[Path, int] = {}

    def files(self) -> Sequence[Path]:
        """Return the files, one of each process."""
        return sorted(self._folder.glob("*.ledger"))

    def read_on(self) -> list[Numbers]:
        """Return the batches that were added since the last call; one that was cut by a kill is none."""
        new = []
        for file in self.files():
            for at, kind, identities in self._rest_of(file):
                self.batches.append((at, kind, identities))
                new.append(identities)
        return new

    def _rest_of(self, file: Path) -> Iterator[tuple[int, int, Numbers]]:
        with file.open("rb") as opened:
            opened.seek(self._read.get(file, 0))
            data = opened.read()
        words = np.frombuffer(data[: len(data) // 8 * 8], dtype=np.int64)
        start = 0
        while start + 4 <= len(words):
            mark, kind, at, count = words[start : start + 4].tolist()
            assert mark == BATCH, f"{file} is torn"
            if start + 4 + count > len(words):
                break
            yield at, kind, words[start + 4 : start + 4 + count].copy()
            start += 4 + count
        self._read[file] = self._read.get(file, 0) + 8 * start

    def in_order(self) -> tuple[Numbers, Numbers]:
        """Return all that was handled in the order of time, and the times (ns, monotonic)."""
        batches = sorted(self.batches, key=lambda batch: batch[0])
        if not batches:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        times = np.repeat([at for at, _, _ in batches], [len(identities) for _, _, identities in batches])
        return np.concatenate([identities for _, _, identities in batches]), times


class Letters:
    """What stands in the dead-letter topic: how often each place was dead-lettered, and what is wrong with it."""

    def __init__(self, topic: str, group: str) -> None:
        self.places: Counter[tuple[int, int]] = Counter()
        self.wrong: list[str] = []
        self._topic = topic
        self._group = group

    async def read(self, bootstrap_servers: Sequence[str], dead_letter_topic: str, log: Log) -> None:
        """Read all dead letters, and compare each with the record that it was."""
        async for _, _, _, raw in records_of(bootstrap_servers, dead_letter_topic):
            self._note(raw, log)

    def _note(self, raw: Raw, log: Log) -> None:
        letter = dead_letter.read(raw.key, raw.value, raw.headers)
        place = (-1 if letter.partition is None else letter.partition, -1 if letter.offset is None else letter.offset)
        self.places[place] += 1
        bad = log.bad.get(place)
        name = f"dead letter of {letter.partition}/{letter.offset}"
        if bad is None:
            self.wrong.append(
                f"{name} was good: {letter.key!r}, {letter.error_type}: {letter.error}, {letter.tries} tries"
            )
        elif (letter.timestamp, Raw(letter.value, letter.key, letter.headers)) != bad:
            self.wrong.append(f"{name} differs: {letter} was {bad}")
        elif (letter.topic, letter.group) != (self._topic, self._group) or not letter.tries or not letter.error_type:
            self.wrong.append(f"{name} tells wrong things: {letter}")


async def records_of(bootstrap_servers: Sequence[str], topic: str) -> AsyncIterator[tuple[int, int, int, Raw]]:
    """Yield partition, offset, timestamp and content of every record; not what a transaction took back."""
    options = {"auto_offset_reset": "earliest", "isolation_level": "read_committed"}
    async with AIOKafkaConsumer(topic, bootstrap_servers=list(bootstrap_servers), **options) as client:
        left: dict[TopicPartition, int] = dict(await client.end_offsets(client.assignment()))
        while left:
            found = await client.getmany(*left, timeout_ms=200, max_records=10_000)
            for tp, records in found.items():
                for record in records:
                    raw = Raw(record.value, record.key, tuple(record.headers))
                    yield tp.partition, record.offset, record.timestamp, raw
            left = {tp: end for tp, end in left.items() if await client.position(tp) < end}


def compare(ledger: Ledger, log: Log, handled: Handled, letters: Letters) -> Findings:
    """Compare all that is known at the end, when nothing is on its way any more."""
    findings = Findings()
    findings.refuse("untrue answers", ledger.complaints)
    findings.refuse("records in the log that were not sent so", log.wrong)
    findings.refuse("untrue dead letters", letters.wrong)
    identities, _ = handled.in_order()
    _compare_receipts(ledger, log, findings)
    _compare_order_sent(ledger, findings)
    ledger.made_up.compare(log, findings)
    _compare_handled(ledger, log, identities, findings)
    _compare_bad(ledger, log, letters, findings)
    return findings


def _compare_receipts(ledger: Ledger, log: Log, findings: Findings) -> None:
    """Everything acknowledged stands where its receipt says, and nothing that was not written stands anywhere."""
    in_log = {
        name: np.concatenate([log.good.column(name), log.refused.column(name)])
        for name in ("identity", "partition", "offset", "timestamp")
    }
    received = {name: ledger.sent.column(name) for name in ("fate", "partition", "offset", "timestamp")}
    received["identity"] = np.arange(len(ledger.sent))

    once, first, times = np.unique(in_log["identity"], return_index=True, return_counts=True)
    findings.refuse("records that stand in the log twice", once[times > 1])
    at = np.minimum(np.searchsorted(once, received["identity"]), max(len(once) - 1, 0))
    present = once[at] == received["identity"] if len(once) else np.zeros(len(received["identity"]), dtype=bool)
    delivered, refused_writing = received["fate"] == DELIVERED, received["fate"] == NOT_WRITTEN
    findings.refuse("acknowledged records that are missing", received["identity"][delivered & ~present])
    findings.refuse("records that were written after all", received["identity"][refused_writing & present])
    placed = delivered & present & (received["offset"] >= 0)
    wrong = np.zeros(len(placed), dtype=bool)
    for name in ("partition", "offset", "timestamp"):
        wrong |= placed & (received[name] != in_log[name][first[at]])
    findings.refuse("receipts that name another place or time", received["identity"][wrong])
    findings.refuse("records that nobody sent", np.setdiff1d(once[once < MADE_UP], received["identity"]))
    counts = Counter(received["fate"].tolist())
    findings.counts |= {
        "acknowledged": counts[DELIVERED],
        "acknowledged without an offset": int((delivered & (received["offset"] < 0)).sum()),
        "unknown": counts[UNKNOWN],
        "of these in the log": int(((received["fate"] == UNKNOWN) & present).sum()),
        "unanswered": counts[UNANSWERED],
        "not written": counts[NOT_WRITTEN],
        "in the log": len(log.good) + len(log.bad),
    }


def _compare_order_sent(ledger: Ledger, findings: Findings) -> None:
    """What one caller was acknowledged of one key stands in the order in which it was sent, in one partition."""
    columns = {name: ledger.sent.column(name) for name in ("caller", "key", "fate", "partition", "offset")}
    (rows,) = np.nonzero((columns["key"] >= 0) & (columns["fate"] == DELIVERED) & (columns["offset"] >= 0))
    caller, key, _, partition, offset = (column[rows] for column in columns.values())
    order = np.lexsort((rows, caller, key))
    same = (key[order][1:] == key[order][:-1]) & (caller[order][1:] == caller[order][:-1])
    back = same & (offset[order][1:] <= offset[order][:-1])
    findings.refuse("records that overtook an earlier one of their key", rows[order][1:][back])
    moved = (key[order][1:] == key[order][:-1]) & (partition[order][1:] != partition[order][:-1])
    findings.refuse("records whose key stands in another partition too", rows[order][1:][moved])


def _compare_handled(ledger: Ledger, log: Log, identities: Numbers, findings: Findings) -> None:
    """Every good record was handled, no other was, and those of a key were first handled in their order."""
    once, first, times = np.unique(identities, return_index=True, return_counts=True)
    good, offset = log.good.column("identity"), log.good.column("offset")
    findings.refuse("good records that were never handled", np.setdiff1d(good, once))
    findings.refuse("handled, but not good or not in the log", np.setdiff1d(once, good))
    keys = ledger.sent.column("key")
    (rows,) = np.nonzero((good < len(keys)) & np.isin(good, once))
    rows = rows[keys[good[rows]] >= 0]
    key, rank = keys[good[rows]], first[np.searchsorted(once, good[rows])]
    order = np.lexsort((offset[rows], key))
    back = (key[order][1:] == key[order][:-1]) & (rank[order][1:] < rank[order][:-1])
    findings.refuse("records that were handled before an earlier one of their key", good[rows][order][1:][back])
    findings.counts |= {"handled": len(once), "handled again": int((times - 1).sum())}


def _compare_bad(ledger: Ledger, log: Log, letters: Letters, findings: Findings) -> None:
    """Every bad record stands in the log as it was acknowledged, and among the dead letters."""
    lost = [
        (partition, offset, raw)
        for raw, partition, offset in ledger.bad
        if offset >= 0 and log.bad.get((partition, offset), Bad(0, Raw(b"missing"))).raw != raw
    ]
    findings.refuse("acknowledged bad records that are missing", lost)
    findings.refuse("bad records that were not dead-lettered", sorted(log.bad.keys() - letters.places.keys()))
    findings.counts |= {
        "bad": len(log.bad),
        "dead-lettered": len(letters.places),
        "dead-lettered again": letters.places.total() - len(letters.places),
    }
