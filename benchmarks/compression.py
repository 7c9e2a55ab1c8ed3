"""Measures the codecs of `COMPRESSION`: `python -m benchmarks.compression [--rounds 3] [--write FOLDER]`.

The same records are posted to a producer of each codec in turn: people in lists and one by one, and records of 2 KB in
lists; then all is consumed. The bytes are those of the topic's files on the broker. Starts a Kafka and the services.
"""

import argparse
import asyncio
import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple

from faker.providers.address.en_US import Provider as Addresses
from faker.providers.person.en_US import Provider as Names
from msgspec.structs import replace
from uvicorn.loops.auto import auto_loop_factory

from apps.producer.generating.people import PersonFactory
from benchmarks.caller import connected, in_turn, post_of
from benchmarks.measures import drained_by_service
from benchmarks.processes import Service, service
from benchmarks.report import load, machine, put_into, spread, table
from benchmarks.watching import create_topic, records_in
from contracts.person import Person
from contracts.stream import encode
from tools.attached import end_at_signals
from tools.local_kafka import LocalKafka
from tools.starters import end_with_starters

CODECS = ("none", "lz4", "snappy", "zstd", "gzip")
LARGE_BYTES = 2_048
DISTINCT = 20_000
"""People that bodies are made of; then the same come again."""
WORDS = [*Names.last_names, *Addresses.city_suffixes]
words = Random(0)


class Way(NamedTuple):
    """A way of posting: so many records a request, requests of a round, and connections."""

    name: str
    records: int
    requests: int
    connections: int
    large: bool = False


WAYS = (
    Way("people, lists of 500", 500, 200, 4),
    Way("people one by one, 64 connections", 1, 5_000, 64),
    Way("records of 2 KB, lists of 100", 100, 200, 4, large=True),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it to the documents where that is wanted."""
    parser = argparse.ArgumentParser("python -m benchmarks.compression")
    parser.add_argument("--rounds", type=int, default=3, help="of all codecs in turn (default: 3)")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="whose speed.md gets the figures")
    options = parser.parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    end_at_signals("SIGTERM", "SIGHUP")
    end_with_starters()
    before = load()
    with tempfile.TemporaryDirectory() as folder, LocalKafka(data=Path(folder)) as kafka, ExitStack() as running:
        servers = kafka.bootstrap_servers[0]
        producers = {}
        for codec in CODECS:
            create_topic(servers, codec)
            producers[codec] = running.enter_context(service("producer", servers, codec, COMPRESSION=codec))
        rows = [row for way in WAYS for row in _measured(way, producers, Path(folder), options.rounds)]
        rows += [_consumed(servers, codec) for codec in CODECS]
    rounds = f"Medians of {options.rounds} rounds (least to most)"
    headings = ("records", "`COMPRESSION`", "records/s", "CPU µs a record", "bytes a record on the broker")
    report = f"{table([headings, *rows])}\n\n{machine()}. {rounds}. Load average {before} before, {load()} after."
    print("", report, sep="\n")
    if options.write:
        put_into(options.write / "speed.md", "compression", report)


def _measured(way: Way, producers: dict[str, Service], data: Path, rounds: int) -> list[tuple[str, ...]]:
    """Post in one way to all producers in turn; return a row for each codec."""
    requests = _requests(way)
    rates, cpu, sizes = (defaultdict[str, list[float]](list) for _ in range(3))
    for number in range(rounds + 1):
        for codec, producer in producers.items():
            written, used, start = _bytes_of(data, codec), producer.cpu_seconds(), time.perf_counter()
            with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
                runner.run(_post(producer.port, way.connections, requests))
            seconds, records = time.perf_counter() - start, way.records * way.requests
            if number:  # the first warms up
                rates[codec].append(records / seconds)
                cpu[codec].append((producer.cpu_seconds() - used) / records * 1e6)
                sizes[codec].append((_bytes_of(data, codec) - written) / records)
            print(f"{way.name}, {codec}: {records / seconds:,.0f} records/s", flush=True)
    return [
        (
            way.name,
            f"`{codec}`",
            spread(rates[codec], "{:,.0f}"),
            spread(cpu[codec], "{:.1f}"),
            f"{median(sizes[codec]):.0f}",
        )
        for codec in producers
    ]


def _consumed(servers: str, codec: str) -> tuple[str, ...]:
    """Consume all that was posted to the producer of a codec; return its row."""
    with service("consumer", servers, codec, "all") as consumer:
        took = drained_by_service(consumer, servers, codec, "all", records_in(servers, codec))
    rate, cpu = took.records / took.seconds, took.cpu_seconds / took.records * 1e6
    return "consuming all of them", f"`{codec}`", f"{rate:,.0f}", f"{cpu:.1f}", ""


def _requests(way: Way) -> list[bytes]:
    people = PersonFactory.batch(DISTINCT // (20 if way.large else 1))
    if way.large:
        people = list(map(_enlarged, people))
    lists = [people[start : start + way.records] for start in range(0, len(people), way.records)]
    made = [post_of("/producers/people", encode(one if way.records > 1 else one[0])) for one in lists]
    return list(islice(cycle(made), way.requests))


def _enlarged(person: Person) -> Person:
    """Return a person of 2 KB: the address is a text of names and cities."""
    missing, address = LARGE_BYTES - len(encode(person)), person.address
    while len(address) < missing:
        address += f", {words.choice(WORDS)}"
    return replace(person, address=address)


async def _post(port: int, connections: int, requests: Sequence[bytes]) -> None:
    async with connected(port, connections) as those:
        await in_turn(those, requests, None)


def _bytes_of(data: Path, topic: str) -> int:
    """Return the bytes of a topic's records on the broker."""
    return sum(file.stat().st_size for file in data.glob(f"broker-*/{topic}-*/*.log"))


if __name__ == "__main__":
    main()
