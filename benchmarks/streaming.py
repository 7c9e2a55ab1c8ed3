"""Measures the live tail with many readers: `python -m benchmarks.streaming [--readers 1000] [--rate 1000]`.

People are posted at a steady rate, first while nobody watches and then while many do: what that does to the time from
a post until the person is visible at the consumer, and to the consumer's processor time; and whether every reader got
every record. Starts a Kafka and the services for itself, and ends them.
"""

import argparse
import asyncio
import json
import logging
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import closing

from benchmarks.processes import BenchmarkFailed, Service, answer_of, call, python, service
from tools.local_kafka import LocalKafka

TOPIC = "people"
POSTS_PER_SECOND = 20
"""People whose time until they are visible is taken, a second."""
POSTS = 10
"""Requests a second that make the rest of them."""
SETTLED_WITHIN = 120.0
"""Seconds until all readers must be connected, and again until they must have got all."""
RECORD = b"\ndata: "


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print what was found; with `--watch PORT` be the readers of it."""
    parser = argparse.ArgumentParser("python -m benchmarks.streaming")
    parser.add_argument("--readers", type=int, default=1_000, help="at a time (default: 1000)")
    parser.add_argument("--rate", type=int, default=1_000, help="records a second (default: 1000)")
    parser.add_argument("--seconds", type=int, default=20, help="of each part (default: 20)")
    parser.add_argument("--watch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    expected = (options.rate - options.rate % POSTS) * options.seconds + POSTS_PER_SECOND * options.seconds
    if options.watch:
        asyncio.run(_watch(options.watch, options.readers, expected))
        return
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with LocalKafka() as kafka:
        servers = kafka.bootstrap_servers[0]
        with service("producer", servers, TOPIC) as producer, service("consumer", servers, TOPIC, "group") as consumer:
            alone = asyncio.run(_load(producer, consumer, options))
            print(f"nobody watches: {alone}", flush=True)
            arguments = ("--watch", str(consumer.port), "--readers", str(options.readers))
            with python("benchmarks.streaming", *arguments, *_same(options)) as readers:
                assert readers.stdout is not None  # noqa: S101 - it is a pipe
                if not readers.stdout.readline():
                    raise BenchmarkFailed("not all readers could connect")
                watched = asyncio.run(_load(producer, consumer, options))
                print(f"{options.readers} watch: {watched}", flush=True)
                print(f"of {options.readers} readers, those that got all {expected:,} records once: ", end="")
                print(json.loads(readers.stdout.readline()))


def _same(options: argparse.Namespace) -> tuple[str, ...]:
    return "--rate", str(options.rate), "--seconds", str(options.seconds)


async def _load(producer: Service, consumer: Service, options: argparse.Namespace) -> str:
    """Post people for some seconds; return what it took, in one line."""
    cpu, began = consumer.cpu_seconds(), time.perf_counter()
    posting = asyncio.create_task(asyncio.to_thread(_post, producer, options.rate // POSTS, options.seconds))
    arguments = ("visible", producer.port, consumer.port, POSTS_PER_SECOND, options.seconds)
    delays = (await asyncio.to_thread(answer_of, "caller", *arguments))["visible"]
    await posting
    used = (consumer.cpu_seconds() - cpu) / (time.perf_counter() - began)
    visible = f"visible p50 {delays['p50']:.1f} ms, p99 {delays['p99']:.1f} ms"
    return f"{visible}; {used:.0%} of a core; {consumer.peak_mb():.0f} MB at most"


def _post(producer: Service, number: int, seconds: int) -> None:
    start = time.perf_counter()
    with closing(producer.connection()) as connection:
        for turn in range(POSTS * seconds):
            time.sleep(max(0.0, start + turn / POSTS - time.perf_counter()))
            call(connection, "POST", f"/producers/basic_producer?number_of_people={number}")


async def _watch(port: int, readers: int, expected: int) -> None:
    """Watch until every reader has got so many records; print how many readers have."""
    counts = [0] * readers
    connected = asyncio.Semaphore(0)

    async def read(reader: int) -> None:
        incoming, outgoing = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        outgoing.write(b"GET /consumers/messages/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await incoming.readuntil(b"retry:")
        connected.release()
        rest = b""
        while counts[reader] < expected and (piece := await incoming.read(2**20)):
            counts[reader] += (rest + piece).count(RECORD)
            rest = piece[-len(RECORD) + 1 :]
        outgoing.close()

    reading = [asyncio.create_task(read(reader)) for reader in range(readers)]
    async with asyncio.timeout(SETTLED_WITHIN):
        for _ in range(readers):
            await connected.acquire()
    print("connected", flush=True)
    await asyncio.wait(reading, timeout=SETTLED_WITHIN)
    if too_many := [count for count in counts if count > expected]:
        raise BenchmarkFailed(f"{len(too_many)} readers got more than there were")
    print(json.dumps(sum(count == expected for count in counts)), flush=True)
    sys.exit()


if __name__ == "__main__":
    main()
