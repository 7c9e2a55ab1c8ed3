"""Measures the services beside the raw client: `python -m benchmarks [--rounds 3] [--output FILE]`.

Starts a Kafka and the services for itself, and ends them. Nothing is asserted: the table puts targets beside results.
"""

import argparse
import json
import logging
import signal
import sys
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks.measures import (
    LARGEST_REQUEST,
    Comparison,
    Producing,
    drained_by_raw_client,
    drained_by_service,
    latency,
)
from benchmarks.processes import BenchmarkFailed, Service, service
from benchmarks.report import Row, load, machine, row_of_memory, rows_of_comparison, rows_of_latency, table
from benchmarks.watching import Drained, records_in, watch_drain
from tools.local_kafka import LocalKafka, LocalKafkaError

TOPIC = "people"
POSTS_PER_SECOND = 100


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the report, and write it to a file where one is named."""
    options = _options(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        before = load()
        with LocalKafka() as kafka:
            rows, value_bytes = _measure(kafka.bootstrap_servers[0], options)
    except (BenchmarkFailed, LocalKafkaError, HTTPException, OSError) as error:
        sys.exit(f"benchmarks: {type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    report = "\n".join(
        [
            table(rows),
            "",
            f"{machine()}. Load average {before} before, {load()} after.",
            f"Medians of {options.rounds} rounds (least to most); {value_bytes:.0f} bytes of value a record.",
        ]
    )
    print("", report, sep="\n")
    if options.output:
        options.output.write_text(report + "\n", encoding="utf-8")


def _measure(bootstrap_servers: str, options: argparse.Namespace) -> tuple[list[Row], float]:
    """Run all measures; return the rows of the table and the mean size of a value."""
    with service("producer", bootstrap_servers, TOPIC) as producer:
        producing = Producing(producer, bootstrap_servers, TOPIC)
        producing.produce(LARGEST_REQUEST)  # warm
        for number in range(1, options.rounds + 1):
            producing.round(LARGEST_REQUEST)
            _say(f"producing, round {number}", producing.comparison)
        rows = rows_of_comparison("producing", producing.comparison, 1.0)
        rows.append(row_of_memory(f"producer after requests of {LARGEST_REQUEST:,}", producer.peak_mb(), 250))
        return rows + _measure_consumer(producing, bootstrap_servers, options), producing.value_bytes


def _measure_consumer(producing: Producing, bootstrap_servers: str, options: argparse.Namespace) -> list[Row]:
    consuming = Comparison()
    backlog = _fill(producing, bootstrap_servers, options.backlog)
    drained_by_raw_client(bootstrap_servers, TOPIC, "warm-up", backlog)  # Kafka's own first reads are slow ones
    for number in range(1, options.rounds + 1):
        raw = drained_by_raw_client(bootstrap_servers, TOPIC, f"raw-{number}", backlog)
        _note(raw, consuming.raw, consuming.raw_cpu)
        group = f"service-{number}"
        with service("consumer", bootstrap_servers, TOPIC, group) as consumer:
            drained = drained_by_service(consumer, bootstrap_servers, TOPIC, group, backlog)
            _note(drained, consuming.service, consuming.service_cpu)
            _say(f"consuming, round {number}", consuming)
            if number == options.rounds:
                memory = [row_of_memory(f"consumer after {backlog:,}", consumer.peak_mb(), 150)]
                print("latency ...", flush=True)
                delays = latency(producing.producer, consumer, options.posts, POSTS_PER_SECOND)
                total = _drain_another(producing, bootstrap_servers, consumer, group, options.backlog)
                memory.append(row_of_memory(f"consumer after {total:,}", consumer.peak_mb(), 150))
    return [*rows_of_comparison("consuming", consuming, 0.8), *rows_of_latency(delays, 25, 100), *memory]


def _drain_another(producing: Producing, bootstrap_servers: str, consumer: Service, group: str, backlog: int) -> int:
    """Have the same process consume a second backlog; return how many records it has consumed in all."""
    consumer.call("POST", "/consumers/stop")
    total = _fill(producing, bootstrap_servers, records_in(bootstrap_servers, TOPIC) + backlog)
    consumer.call("POST", "/consumers/start")
    watch_drain(bootstrap_servers, TOPIC, group, total, consumer)
    return int(json.loads(consumer.call("GET", "/consumers/status"))["messages_consumed_count"])


def _fill(producing: Producing, bootstrap_servers: str, upto: int) -> int:
    """Produce until the topic has at least so many records; return how many it has."""
    print(f"filling the topic up to {upto:,} ...", flush=True)
    while (missing := upto - records_in(bootstrap_servers, TOPIC)) > 0:
        producing.produce(min(missing, LARGEST_REQUEST))
    return upto - missing


def _note(drained: Drained, rates: list[float], cpu: list[float]) -> None:
    rates.append(drained.records / drained.seconds)
    cpu.append(drained.cpu_seconds / drained.records * 1e6)


def _say(what: str, comparison: Comparison) -> None:
    service, raw, ratio = comparison.service[-1], comparison.raw[-1], comparison.ratios[-1]
    print(f"{what}: {service:,.0f} records/s, raw client {raw:,.0f}, ratio {ratio:.2f}", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description="Measure the services beside the raw client, on a Kafka of their own."
    )
    parser.add_argument("--rounds", type=_positive, default=3, help="of service and raw client in turn (default: 3)")
    parser.add_argument(
        "--backlog", type=_positive, default=500_000, help="people to be consumed in a round (default: 500000)"
    )
    parser.add_argument("--posts", type=_positive, default=1_000, help="people whose latency is taken (default: 1000)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="gets the report too, as Markdown")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _interrupt(_: int, __: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
