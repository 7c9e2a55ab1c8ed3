"""Measures what more processes give: `python -m benchmarks.scale [--partitions 6 24] [--processes 1 2 3]`.

So many producers and so many consumers, on topics of so many partitions: records a second of all together, how evenly
the records are shared, and for how long nothing is committed while a consumer joins the group or leaves it. Then what
that comes to on paper, on a cluster. Starts a Kafka and the services for itself, and ends them.
"""

import argparse
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from http.client import HTTPException
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.measures import MAX_REQUEST_RECORDS, ones_posted
from benchmarks.processes import BenchmarkFailed, Service, Took, call, service
from benchmarks.report import load, machine, put_into, table
from benchmarks.watching import Progress, create_topic, records_in
from tools.local_kafka import LocalKafka, LocalKafkaError

ROUNDS = 3
"""Times that people are made, and that all of it is consumed; the one in the middle counts."""
POLL = 0.05
WITHIN = 120.0
BEFORE_AND_AFTER = 4.0
"""Seconds that commits are watched after a member joined or left."""
TRICKLE, TRICKLES = 50, 20
"""People of a request, and requests a second, while members join and leave."""
POSTS, WORKERS_PARTITIONS = 20_000, 12
"""People that are posted one by one in a round, and partitions of their topic."""
CORE_HOUR = 0.05
"""US dollars: the order of what a cloud's core costs for an hour, on demand."""
WANTED = 1_000_000
"""Records a second that the paper is about."""
BUSY = 0.6
"""Share of a core that a copy uses in the long run: the rest is for peaks, and for when a copy is gone."""
VALUE, REPLICAS = 290, 3
"""Bytes of a record in a batch (251 of value, the key, what the format adds), and on how many brokers it is kept."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the report, and write it to the documents where that is wanted."""
    options = _options(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    before = load()
    rows: list[tuple[str, ...]] = []
    produced: list[Took] = []
    consumed: list[Took] = []
    try:
        with LocalKafka() as kafka:
            servers = kafka.bootstrap_servers[0]
            for partitions in options.partitions:
                create_topic(servers, _topic(partitions), partitions)
                producing = [_produce(servers, partitions, number, options.requests) for number in options.processes]
                _fill(servers, partitions, options.backlog)
                for number, took in zip(options.processes, producing, strict=True):
                    drained, shares, pauses = _consume(servers, partitions, number)
                    rows.append((str(partitions), str(number), _rate(took), _rate(drained), shares, *pauses))
                    print(rows[-1], flush=True)
                    consumed.append(drained)
                produced += producing
            create_topic(servers, _topic(WORKERS_PARTITIONS), WORKERS_PARTITIONS)
            working = [_work(servers, workers) for workers in options.workers]
    except (BenchmarkFailed, LocalKafkaError, HTTPException, OSError) as error:
        sys.exit(f"benchmarks.scale: {type(error).__name__}: {error}")
    report = "\n\n".join(
        [
            table([HEADINGS, *rows]),
            table([HEADINGS_OF_WORKERS, *working]),
            f"{machine()}. Load average {before} before, {load()} after.",
            _on_paper(produced, consumed),
        ]
    )
    print("", report, sep="\n")
    if options.write:
        put_into(options.write / "speed.md", "scale", report)


HEADINGS = (
    "partitions",
    "processes of each",
    "produced/s",
    "consumed/s",
    "shares of the consumers, %",
    "longest time without a commit, ms: steady",
    "one joins",
    "one leaves",
)


HEADINGS_OF_WORKERS = (
    "`PRODUCER_WORKERS`",
    "CPU a record, µs",
    "people posted one by one/s",
    "shares of the workers, %",
)


def _produce(servers: str, partitions: int, number: int, requests: int) -> Took:
    """Have so many producers make people, all at a time; return what it took."""
    topic = _topic(partitions)
    with ExitStack() as stack, ThreadPoolExecutor(number) as pool:
        producers = [
            stack.enter_context(service("producer", servers, topic, partitions=partitions)) for _ in range(number)
        ]

        def make(producer: Service) -> None:
            for _ in range(requests):
                producer.call("POST", f"/producers/basic_producer?number_of_people={MAX_REQUEST_RECORDS}")

        def once() -> Took:
            cpu, start = _cpu(producers), time.perf_counter()
            list(pool.map(make, producers))
            return Took(number * requests * MAX_REQUEST_RECORDS, time.perf_counter() - start, _cpu(producers) - cpu)

        list(pool.map(lambda one: one.call("POST", "/producers/basic_producer?number_of_people=10000"), producers))
        return sorted((once() for _ in range(ROUNDS)), key=lambda took: took.seconds)[ROUNDS // 2]


def _work(servers: str, workers: int) -> tuple[str, ...]:
    """Post people one by one to a producer of so many workers, on cores that nothing else uses; return its row.

    Kafka and the callers share the first core, so that the CPU time of a record shows what workers cost each other.
    """
    first, *others = cores = sorted(os.sched_getaffinity(0))
    with service("producer", servers, _topic(WORKERS_PARTITIONS), PRODUCER_WORKERS=str(workers)) as producer:
        _pin(psutil.Process().children(recursive=True), [first])
        _pin(producer.all(), others)
        os.sched_setaffinity(0, [first])  # callers inherit it
        try:
            found = [_posts(producer, workers) for _ in range(ROUNDS)]
        finally:
            os.sched_setaffinity(0, cores)
    took, shares = sorted(found, key=lambda one: one[0].cpu_seconds)[ROUNDS // 2]
    return str(workers), f"{took.cpu_seconds / took.records * 1e6:.0f}", _rate(took), shares


def _pin(processes: Sequence[psutil.Process], cores: Sequence[int]) -> None:
    """Let all threads of processes run on some cores alone."""
    for process in processes:
        for thread in process.threads():
            os.sched_setaffinity(thread.id, cores)


def _posts(producer: Service, workers: int) -> tuple[Took, str]:
    """Post people one by one; return what that took the producer, and the shares of its workers."""

    def used() -> list[float]:
        return [sum(one.cpu_times()[:2]) for one in producer.all()[-workers:]]

    before = used()
    took = ones_posted(producer, number=POSTS)
    each = [now - so_far for now, so_far in zip(used(), before, strict=True)]
    return took, " / ".join(f"{100 * one / sum(each):.0f}" for one in each)


def _fill(servers: str, partitions: int, upto: int) -> None:
    topic = _topic(partitions)
    with service("producer", servers, topic, partitions=partitions) as producer:
        while (missing := upto - records_in(servers, topic, partitions)) > 0:
            producer.call("POST", f"/producers/basic_producer?number_of_people={min(missing, MAX_REQUEST_RECORDS)}")


def _consume(servers: str, partitions: int, number: int) -> tuple[Took, str, tuple[str, ...]]:
    """Have so many consumers consume the topic; return what it took, the share of each, and the longest pauses."""
    topic, group = _topic(partitions), f"group-{partitions}-{number}"
    start_one = partial(service, "consumer", servers, topic, group, partitions=partitions)
    with ExitStack() as stack:
        consumers = [stack.enter_context(start_one()) for _ in range(number)]
        records = records_in(servers, topic, partitions)
        _wait_until(lambda: _has_settled(consumers))
        rounds = [_again(consumers, records) for _ in range(ROUNDS)]
        took, shares = sorted(rounds, key=lambda one: one[0].seconds)[ROUNDS // 2]
        with _trickle(servers, partitions), Progress().watch(servers, topic, group, partitions) as progress:
            time.sleep(1)
            steady = _paused(progress, lambda: None)
            another = ExitStack()
            joins = _paused(progress, lambda: another.enter_context(start_one()))
            leaves = _paused(progress, another.close)
    return took, shares, (steady, joins, leaves)


def _has_settled(consumers: Sequence[Service]) -> bool:
    """Return whether the consumers have all partitions among them, and nothing is left to be consumed."""
    found = [_status(one) for one in consumers]
    return all(one["partitions"] and one["state"] == "running" and one["lag"] == 0 for one in found)


def _again(consumers: Sequence[Service], records: int) -> tuple[Took, str]:
    """Send all consumers back to the beginning, as members that they are, and let them go on at the same moment."""
    with ThreadPoolExecutor(len(consumers)) as pool:
        list(pool.map(lambda one: one.call("POST", "/consumers/pause"), consumers))
        for one in consumers:
            with closing(one.connection()) as connection:
                call(connection, "POST", "/consumers/seek", b'{"to": "beginning"}')
        before = [one.consumed() for one in consumers]
        cpu, start = _cpu(consumers), time.perf_counter()
        list(pool.map(lambda one: one.call("POST", "/consumers/resume"), consumers))
        _wait_until(lambda: sum(one.consumed() for one in consumers) - sum(before) >= records)
        took = Took(records, time.perf_counter() - start, _cpu(consumers) - cpu)
    each = [one.consumed() - so_far for one, so_far in zip(consumers, before, strict=True)]
    return took, " / ".join(f"{100 * one / sum(each):.0f}" for one in each)


def _paused(progress: Progress, what: Callable[[], object]) -> str:
    """Return the longest pause, in milliseconds, from before `what` until some seconds after it."""
    since = time.perf_counter()
    what()
    time.sleep(BEFORE_AND_AFTER)
    return f"{progress.longest_pause(since, time.perf_counter()) * 1e3:.0f}"


@contextmanager
def _trickle(servers: str, partitions: int) -> Iterator[None]:
    """Have a producer send 1,000 people a second during the block."""
    ended = threading.Event()
    with service("producer", servers, _topic(partitions), partitions=partitions) as producer:

        def send() -> None:
            with closing(producer.connection()) as connection:
                while not ended.wait(1 / TRICKLES):
                    call(connection, "POST", f"/producers/basic_producer?number_of_people={TRICKLE}")

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _on_paper(produced: Sequence[Took], consumed: Sequence[Took]) -> str:
    """Return what a cluster would need by what a record costs here: the reasoning, and its result."""
    lines = ["Estimate from the CPU time of a record here (median of all rows):", ""]
    for name, took in (("producer", produced), ("consumer", consumed)):
        cost = median(one.cpu_seconds / one.records for one in took)
        hours = cost * 1e9 / 3600
        instances = ceil(WANTED * cost / BUSY)
        lines.append(
            f"- {name}: {cost * 1e6:.1f} µs of a core a record, so a billion records take {hours:.1f} core hours, "
            f"${hours * CORE_HOUR:.2f} at ${CORE_HOUR:.2f} an hour. {WANTED:,} records/s take {WANTED * cost:.1f} "
            f"cores; with each core {BUSY:.0%} busy that is {instances} instances."
        )
    disk = WANTED * VALUE / 1e6
    lines.append(
        f"- Kafka: {WANTED:,} records/s of {VALUE} bytes are {disk:.0f} MB/s in, {disk * REPLICAS:.0f} MB/s written by "
        f"all brokers with {REPLICAS} replicas, and {disk:.0f} MB/s out for each group that reads."
    )
    return "\n".join(lines)


def _wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + WITHIN
    while not happened():
        if time.perf_counter() > deadline:
            raise BenchmarkFailed(f"it did not happen within {WITHIN:g} s")
        time.sleep(POLL)


def _topic(partitions: int) -> str:
    return f"people-{partitions}"


def _status(consumer: Service) -> Any:  # noqa: ANN401 - JSON
    return json.loads(consumer.call("GET", "/consumers/status"))


def _cpu(those: Sequence[Service]) -> float:
    return sum(one.cpu_seconds() for one in those)


def _rate(took: Took) -> str:
    return f"{took.records / took.seconds:,.0f}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.scale")
    parser.add_argument("--partitions", type=int, nargs="+", default=[6, 24], help="of the topics (default: 6 24)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3], help="of each (default: 1 2 3)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of a producer (default: 1 2)")
    parser.add_argument("--backlog", type=int, default=1_000_000, help="to be consumed (default: 1000000)")
    parser.add_argument("--requests", type=int, default=3, help="of 100,000 people for each producer (default: 3)")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="whose speed.md gets the figures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
