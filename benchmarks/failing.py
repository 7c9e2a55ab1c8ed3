"""Measures what failing records cost: `python -m benchmarks.failing [--rounds 3] [--write docs]`.

Consumes topics with and without poison in turn, with handlers that do nothing else and that take 20 µs a record; then
takes the delay of good records among poison; then `@each` with a handler that waits. Checks that each poison record
was dead-lettered once. Starts a Kafka and the services for itself, and ends them.
"""

import argparse
import asyncio
import json
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from random import Random
from statistics import quantiles
from typing import Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from apps.producer.generating.people import PersonFactory
from benchmarks.failing_consumer import POISON
from benchmarks.processes import BenchmarkFailed, Service, python, wait_until_healthy
from benchmarks.raw import by_send_batch
from benchmarks.report import load, machine, put_into, spread, table
from benchmarks.watching import PARTITIONS, create_topic, records_in, watch_drain
from contracts.person import PEOPLE, Person
from contracts.stream import encode
from tools.local_kafka import LocalKafka
from tools.ports import free_ports

SHARES = (0.0, 0.001, 0.01, 0.05)
"""Of poison records in the topics."""
PACED, PACED_PER_SECOND, PACED_PIECE_S = 10_000, 1_000, 0.02
KEYS, WAITED_ALONE, WAITED_AT_ONCE = 1_000, 200, 20_000
"""Keys of the topics for `@each`, and their records."""
FIRST = b"first"
"""The key of the first record of each partition of a dead-letter topic."""
LOOK_S = 0.1
DONE_WITHIN_S = 120.0


class Way(NamedTuple):
    """What the handler does, and at least which share of the rate of clean topics is expected for each share."""

    name: str
    way: str
    microseconds: float
    targets: dict[float, float]


WAYS = (
    Way("raises, does nothing else", "raise", 0.0, {0.001: 0.3, 0.01: 0.1}),
    Way("raises, 20 µs a record", "raise", 20.0, {0.001: 0.8}),
    Way("names failures, 20 µs a record", "name", 20.0, {0.001: 0.8}),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser("python -m benchmarks.failing")
    parser.add_argument("--records", type=int, default=100_000, help="of each topic (default: 100000)")
    parser.add_argument("--rounds", type=int, default=3, help="of all ways in turn (default: 3)")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="whose speed.md gets the figures")
    options = parser.parse_args(arguments)
    before = load()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with LocalKafka() as kafka:
        servers = kafka.bootstrap_servers[0]
        rows = [("measured", "result", "target")]
        rows += _throughput(servers, options.records, options.rounds)
        rows += _delays(servers)
        rows += _each(servers)
    rounds = f"Medians of {options.rounds} rounds (least to most)"
    conditions = f"{machine()}. {rounds}. Load average {before} before, {load()} after."
    report = f"{table(rows)}\n\n{conditions}"
    print("", report, sep="\n")
    if options.write:
        put_into(options.write / "speed.md", "failing", report)


def _throughput(servers: str, records: int, rounds: int) -> list[tuple[str, str, str]]:
    poison = {share: _fill(servers, _topic(share), records, share) for share in SHARES}
    rates: dict[tuple[str, float], list[float]] = {}
    warm_up = [(-1, WAYS[0], SHARES[-1])]  # Kafka's first thousands of writes take three times as long as later ones
    for number, way, share in [*warm_up, *product(range(rounds), WAYS, SHARES)]:
        group = f"{way.way}-{way.microseconds:g}-{share}-{number}"
        letters = f"{group}-dlt"
        _open_partitions(servers, letters)
        microseconds = str(way.microseconds)
        with _consumer(servers, _topic(share), group, letters, WAY=way.way, MICROSECONDS=microseconds) as consumer:
            took = watch_drain(servers, _topic(share), group, records, consumer)
        _require_once(servers, letters, poison[share])
        if number >= 0:
            rates.setdefault((way.name, share), []).append(took.records / took.seconds)
        print(f"{group}: {took.records / took.seconds:,.0f} records/s", flush=True)
    rows = []
    for way in WAYS:
        clean = rates[way.name, 0.0]
        rows.append((f"handler {way.name}: no poison, records/s", spread(clean, "{:,.0f}"), ""))
        for share in SHARES[1:]:
            ratios = [rate / base for rate, base in zip(rates[way.name, share], clean, strict=True)]
            target = f"at least {way.targets[share]}" if share in way.targets else ""
            rows.append((f"{share:.1%} poison, of that", spread(ratios, "{:.2f}"), target))
    return rows


def _topic(share: float) -> str:
    return f"poison-{share}"


def _delays(servers: str) -> list[tuple[str, str, str]]:
    """Return the delay of good records, with and without poison among them."""
    p99 = {}
    for share in (0.0, 0.01):
        topic = group = f"paced-{share}"
        create_topic(servers, topic)
        with (
            tempfile.TemporaryDirectory() as folder,
            _consumer(servers, topic, group, f"{topic}-dlt", WAY="note", SEEN_FILE=f"{folder}/seen") as consumer,
        ):
            asyncio.run(_send_paced(servers, topic, share))
            _wait_for_commit(servers, topic, group, consumer)
            p99[share] = quantiles(_seen(consumer, Path(folder, "seen"))["delays"], n=100)[98]
    added = (p99[0.01] - p99[0.0]) / 1_000
    return [("added delay of good records among 1 % poison, 1,000 records/s, p99, s", f"{added:.2f}", "under 2")]


def _each(servers: str) -> list[tuple[str, str, str]]:
    """Return how much faster `@each` handles 1,000 keys at once than one after the other."""
    rates = {}
    for concurrency, records in ((1, WAITED_ALONE), (100, WAITED_AT_ONCE)):
        topic = group = f"each-{concurrency}"
        create_topic(servers, topic, 1)
        people = PersonFactory.batch(records)
        keyed = [msgspec.structs.replace(one, id=f"{index % KEYS}") for index, one in enumerate(people)]
        asyncio.run(_send(servers, topic, keyed))
        with (
            tempfile.TemporaryDirectory() as folder,
            _consumer(
                servers,
                topic,
                group,
                f"{topic}-dlt",
                partitions=1,
                WAY="each",
                MILLISECONDS="50",
                CONCURRENCY=str(concurrency),
                SEEN_FILE=f"{folder}/seen",
            ) as consumer,
        ):
            _wait_for_commit(servers, topic, group, consumer, 1)
            seen = _seen(consumer, Path(folder, "seen"))
        rates[concurrency] = (seen["count"] - 1) / (seen["last"] - seen["first"])
    ratio = f"{rates[100] / rates[1]:.0f}"
    return [("`@each(concurrency=100)`, 50 ms a record, 1,000 keys, times one after the other", ratio, "at least 50")]


def _fill(servers: str, topic: str, records: int, share: float) -> set[str]:
    """Write people, some of them poison; return the keys of these."""
    create_topic(servers, topic)
    chosen = set(Random(1).sample(range(records), int(records * share)))
    people = PersonFactory.batch(records)
    poisoned = [
        msgspec.structs.replace(one, name=POISON) if index in chosen else one for index, one in enumerate(people)
    ]
    asyncio.run(_send(servers, topic, poisoned))
    return {people[index].id for index in chosen}


def _open_partitions(servers: str, topic: str) -> None:
    """Write one record to each partition of a new topic: the first takes Kafka 8 ms, each later one 1 ms."""

    async def write() -> None:
        async with AIOKafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True) as producer:
            for number in range(PARTITIONS):
                await producer.send_and_wait(topic, key=FIRST, partition=number)

    create_topic(servers, topic)
    asyncio.run(write())


async def _send(servers: str, topic: str, people: Sequence[Person]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        await by_send_batch(producer, topic, _records(people))
    finally:
        await producer.stop()


async def _send_paced(servers: str, topic: str, share: float) -> None:
    chance, piece = Random(2), int(PACED_PER_SECOND * PACED_PIECE_S)
    people = [
        msgspec.structs.replace(one, name=POISON) if chance.random() < share else one
        for one in PersonFactory.batch(PACED)
    ]
    records = _records(people)
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        began = time.perf_counter()
        for number, first in enumerate(range(0, PACED, piece)):
            await asyncio.sleep(began + number * PACED_PIECE_S - time.perf_counter())
            for key, value in records[first : first + piece]:
                await producer.send(topic, value, key)
    finally:
        await producer.stop()


def _records(people: Sequence[Person]) -> list[tuple[bytes, bytes]]:
    return [*zip(PEOPLE.keys_of(people), map(encode, people), strict=True)]


@contextmanager
def _consumer(
    servers: str, topic: str, group: str, letters: str, *, partitions: int = 6, **asked: str
) -> Iterator[Service]:
    (port,) = free_ports(1)
    with python(
        "benchmarks.failing_consumer",
        KAFKA_BOOTSTRAP_SERVERS=servers,
        PEOPLE_TOPIC=topic,
        PEOPLE_PARTITIONS=str(partitions),
        DEAD_LETTER_TOPIC=letters,
        CONSUMER_GROUP_ID=group,
        CONSUMER_PORT=str(port),
        LOG_LEVEL="ERROR",
        **asked,
    ) as process:
        started = Service(process, port)
        wait_until_healthy(started, "/livez")
        yield started


def _wait_for_commit(servers: str, topic: str, group: str, consumer: Service, partitions: int = 6) -> None:
    """Wait until the service has no lag on a topic that gets no more records."""
    upto = records_in(servers, topic, partitions)
    deadline = time.monotonic() + DONE_WITHIN_S
    while time.monotonic() < deadline:
        consumer.refuse_ended()
        status = json.loads(consumer.call("GET", "/consumers/status"))
        if status["messages_consumed_count"] + status["dead_lettered_count"] == upto:
            return
        time.sleep(LOOK_S)
    raise BenchmarkFailed(f"{group} did not consume {topic} within {DONE_WITHIN_S:g} s")


def _seen(consumer: Service, file: Path) -> Any:  # noqa: ANN401 - JSON
    consumer.process.terminate()
    consumer.process.wait(DONE_WITHIN_S)
    return json.loads(file.read_text(encoding="utf-8"))


def _require_once(servers: str, letters: str, poison: set[str]) -> None:
    """Raise `BenchmarkFailed` unless each poison record was dead-lettered once, and no other."""
    keys = asyncio.run(_keys_of(servers, letters)) if poison else Counter()
    if keys != Counter(poison):
        raise BenchmarkFailed(f"{len(poison)} poison records, {keys.total()} dead letters of {len(keys)} keys")


async def _keys_of(servers: str, topic: str) -> Counter[str]:
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        keys: Counter[str] = Counter()
        while keys.total() < sum(ends.values()):
            for records in (await consumer.getmany(timeout_ms=1_000)).values():
                keys.update(record.key.decode() for record in records)
        del keys[FIRST.decode()]
        return keys
    finally:
        await consumer.stop()


if __name__ == "__main__":
    main()
