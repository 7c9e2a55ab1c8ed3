"""Measures what looking at the topic costs: `python -m benchmarks.reading [--records 10000000] [--rounds 5]`.

Fills a topic of six partitions, asks the consumer over HTTP for records of it, and has it consume the topic again while
nobody looks and while somebody does, in turn. Starts a Kafka and the services for itself, and ends them.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from random import Random
from statistics import median
from typing import Any

from benchmarks.measures import MAX_REQUEST_RECORDS
from benchmarks.processes import BenchmarkFailed, Service, service
from benchmarks.watching import page_open, records_in, watch_drain
from tools.local_kafka import LocalKafka

TOPIC = "people"
DEPTH = 100_000
"""Records that a search by key goes back at most."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser("python -m benchmarks.reading")
    parser.add_argument("--records", type=int, default=10_000_000, help="of the topic (default: 10000000)")
    parser.add_argument("--rounds", type=int, default=5, help="of consuming, with and without readers (default: 5)")
    options = parser.parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with LocalKafka() as kafka:
        servers = kafka.bootstrap_servers[0]
        _fill(servers, options.records)
        with service("consumer", servers, TOPIC, "reader") as consumer:
            consumer.call("POST", "/consumers/stop")
            _measure_calls(consumer, options.records)
        _measure_consumption(servers, options.rounds)


def _fill(servers: str, upto: int) -> None:
    with service("producer", servers, TOPIC) as producer:
        while (missing := upto - records_in(servers, TOPIC)) > 0:
            producer.call("POST", f"/producers/basic_producer?number_of_people={min(missing, MAX_REQUEST_RECORDS)}")


def _measure_calls(consumer: Service, records: int) -> None:
    chance = Random(1)
    newest = "/consumers/messages?scope=topic&limit=50"
    _say("the newest 50 of the topic", _times(consumer, lambda: newest, 50))
    _say("one record by its offset", _times(consumer, lambda: _any_record(chance, records), 200))
    page = _json(consumer, f"/consumers/messages?scope=topic&limit=1&before={_back(consumer, DEPTH - 1_000)}")
    key = page["messages"][0]["key"]["text"]
    search = f"/consumers/messages?scope=topic&limit=1&key={key}"
    found = _json(consumer, search)
    if [one["key"]["text"] for one in found["messages"]] != [key]:
        raise BenchmarkFailed(f"the key was not found: {found}")
    _say(f"a search by key that finds it {found['scanned']:,} records back", _times(consumer, lambda: search, 10))


def _back(consumer: Service, records: int) -> str:
    """Return the cursor of a place so many records before the end."""
    ends = {one["partition"]: one["end"] for one in _json(consumer, "/consumers/group")["partitions"]}
    return "_".join(f"{partition}-{end - records // len(ends)}" for partition, end in ends.items())


def _any_record(chance: Random, records: int) -> str:
    return f"/consumers/messages/{chance.randrange(6)}/{chance.randrange(records // 7)}"


def _measure_consumption(servers: str, rounds: int) -> None:
    rates: dict[bool, list[float]] = {False: [], True: []}
    cpu: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds):
        for is_read in (False, True):
            group = f"drain-{number}-{is_read}"
            with (
                service("consumer", servers, TOPIC, group) as consumer,
                page_open(consumer) if is_read else nullcontext(),
            ):
                drained = watch_drain(servers, TOPIC, group, records_in(servers, TOPIC), consumer)
            rates[is_read].append(drained.records / drained.seconds)
            cpu[is_read].append(drained.cpu_seconds / drained.records * 1e6)
    ratios = [read / alone for alone, read in zip(rates[False], rates[True], strict=True)]
    print(f"consuming alone: {median(rates[False]):,.0f} records/s, while a page is open: {median(rates[True]):,.0f}")
    print(f"ratio {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    dearer = median(cpu[True]) / median(cpu[False]) - 1
    print(f"CPU a record {median(cpu[False]):.2f} µs, while a page is open {median(cpu[True]):.2f} µs: {dearer:+.1%}")


def _times(consumer: Service, target: Callable[[], str], rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        consumer.call("GET", target())
        times.append((time.perf_counter() - began) * 1_000)
    return times


def _json(consumer: Service, target: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads(consumer.call("GET", target))


def _say(what: str, times: list[float]) -> None:
    print(f"{what}: {median(times):.1f} ms ({min(times):.1f} to {max(times):.1f})", flush=True)


if __name__ == "__main__":
    main()
