"""Measures the services, the raw clients and a tutorial-style pair: `python -m benchmarks [--rounds 3]`.

Starts a Kafka and all services for itself, and ends them. Every round measures all ways in turn, short ones several
times, so that what disturbs one disturbs all. Nothing is asserted: the table shows targets and results.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

from benchmarks.figures import Figures, bars_of, rows_of, ways_of
from benchmarks.measures import (
    LIST,
    ONES,
    SENDERS,
    TEN,
    TENS,
    TUTORIAL_BACKLOG,
    TUTORIAL_LISTS,
    drained_by_raw_client,
    drained_by_service,
    drained_by_tutorial,
    few_made,
    fill,
    lines_posted,
    lists_posted,
    made,
    ones_posted,
    p99_at,
    posted,
    sent_by_raw_client,
    tens_posted,
)
from benchmarks.plot import draw
from benchmarks.processes import BenchmarkFailed, Service, Took, answer_of, asgi, service
from benchmarks.report import headlines, load, machine, put_into, table
from benchmarks.watching import create_topic, page_open, records_in, watch_drain
from tools.attached import end_at_signals
from tools.local_kafka import LocalKafka, LocalKafkaError
from tools.starters import end_with_starters

TOPIC, RAW, LINES, TUTORIAL, LONG = "people", "people-raw", "people-lines", "people-tutorial", "people-long"
TURNS = 3
"""Times that what is short is measured in a round, one way after the other."""
POSTS_PER_SECOND = 1_000
MILLION = 1_000_000
LONG_BACKLOG = 5 * MILLION


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the report, and write it to the documents where that is wanted."""
    options = _options(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    end_at_signals("SIGTERM", "SIGHUP")
    end_with_starters()
    figures = Figures()
    try:
        before = load()
        with LocalKafka() as kafka:
            servers = kafka.bootstrap_servers[0]
            _measure_producing(servers, options, figures)
            _measure_consuming(servers, options, figures)
            if options.long:
                _measure_long_backlog(servers, figures)
    except (BenchmarkFailed, LocalKafkaError, HTTPException, OSError) as error:
        sys.exit(f"benchmarks: {type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    rounds = f"Medians of {options.rounds} rounds (least to most)"
    conditions = f"{machine()}. {rounds}. Load average {before} before, {load()} after."
    rows = rows_of(figures, options.lines)
    report = "\n\n".join([table(rows), table(ways_of(figures)), conditions])
    print("", report, sep="\n")
    if options.write:
        put_into(options.write / "speed.md", "bench", report)
        put_into(options.write.parent / "README.md", "bench", f"{headlines(rows)}\n\n{conditions}")
        (options.write / "speed.svg").write_text(draw(bars_of(figures)), encoding="utf-8")


def _measure_producing(servers: str, options: argparse.Namespace, figures: Figures) -> None:
    for topic in (TOPIC, RAW, LINES, TUTORIAL):
        create_topic(servers, topic)
    with ExitStack() as running:
        producer = running.enter_context(service("producer", servers, TOPIC))
        bare = running.enter_context(asgi("benchmarks.bare:app"))
        tutorial = None
        if find_spec("fastapi"):
            tutorial = running.enter_context(asgi("benchmarks.tutorial.producer:app", servers, TUTORIAL))
        turns: dict[str, Callable[[], Took]] = {
            "made": partial(made, producer, servers, TOPIC),
            "send_batch": partial(sent_by_raw_client, "send_batch", servers, RAW),
            "lists": partial(lists_posted, producer, servers, TOPIC),
            "ones": partial(ones_posted, producer),
            "bare": partial(ones_posted, bare),
            "made, ones": partial(few_made, producer, 1, ONES),
            "tens": partial(tens_posted, producer),
            "made, tens": partial(few_made, producer, TEN, TENS),
        }
        print("warming up ...", flush=True)  # above all Kafka's compiler, which takes its time
        for turn in turns.values():
            turn()
        for number in range(1, options.rounds + 1):
            figures.begin_round("producing", number, options.rounds)
            for name, turn in list(turns.items()) * TURNS:
                figures.note(name, turn())
            took, peak = lines_posted(servers, LINES, options.lines)
            figures.note("lines", took)
            figures.add("memory of lines", peak)
            half = figures.series["ones"].rates[-1] / 2
            figures.add("p99 at half load", p99_at(producer, half, options.seconds))
            figures.note("send", sent_by_raw_client("send", servers, RAW))
            for way in ("produce", "produce_batch") if find_spec("confluent_kafka") else ():
                figures.note(f"librdkafka, {way}", sent_by_raw_client(way, servers, RAW, client="librdkafka"))
            if tutorial:
                figures.note("tutorial, lists", posted(tutorial, LIST, TUTORIAL_LISTS, SENDERS))
                figures.note("tutorial, ones", ones_posted(tutorial, "/producers/person"))
        figures.add("memory of the producer", producer.peak_mb())


def _measure_consuming(servers: str, options: argparse.Namespace, figures: Figures) -> None:
    with service("producer", servers, TOPIC) as producer:
        print("filling the topics ...", flush=True)
        backlog = fill(producer, servers, TOPIC, options.backlog)
        sent_by_raw_client("send_batch", servers, TUTORIAL, TUTORIAL_BACKLOG)
        tutorial_backlog = records_in(servers, TUTORIAL)
        drained_by_raw_client(servers, TOPIC, "warm-up", backlog)  # Kafka's own first reads are slow ones
        for number in range(1, options.rounds + 1):
            figures.begin_round("consuming", number, options.rounds)
            backlog = records_in(servers, TOPIC)
            for turn in range(TURNS):
                figures.note("getmany", drained_by_raw_client(servers, TOPIC, f"raw-{number}-{turn}", backlog))
                group = f"service-{number}-{turn}"
                with service("consumer", servers, TOPIC, group) as consumer:
                    with page_open(consumer, "/metrics"):
                        figures.note("consuming", drained_by_service(consumer, servers, TOPIC, group, backlog))
                    if turn == TURNS - 1:
                        _measure_latency(servers, producer, consumer, options.seconds, figures)
                        figures.add("memory of the consumer", consumer.peak_mb())
            if find_spec("confluent_kafka"):
                drained = drained_by_raw_client(servers, TOPIC, f"librdkafka-{number}", backlog, client="librdkafka")
                figures.note("librdkafka, consume", drained)
            if find_spec("fastapi"):
                with asgi("benchmarks.tutorial.consumer:app", servers, TUTORIAL, f"service-{number}") as consumer:
                    figures.note("tutorial, consuming", drained_by_tutorial(consumer, tutorial_backlog))


def _measure_latency(servers: str, producer: Service, consumer: Service, seconds: int, figures: Figures) -> None:
    pace = POSTS_PER_SECOND, seconds
    reported = answer_of("caller", "visible", producer.port, consumer.port, *pace)
    reported["pushed"] = answer_of("caller", "pushed", producer.port, consumer.port, *pace)
    reported["fetched"] = answer_of("raw", "visible", servers, RAW, *pace)
    for what, times in reported.items():
        for which in ("p50", "p99"):
            figures.add(f"{which} until {what}", times[which])


def _measure_long_backlog(servers: str, figures: Figures) -> None:
    """Drain five million; take the memory after each of them."""
    with service("producer", servers, LONG) as producer:
        print("filling a topic with 5 million people ...", flush=True)
        backlog = fill(producer, servers, LONG, LONG_BACKLOG)
    with service("consumer", servers, LONG, "long") as consumer:
        for upto in range(MILLION, backlog, MILLION):
            watch_drain(servers, LONG, "long", upto, consumer)
            figures.add("memory after each million", consumer.peak_mb())
        watch_drain(servers, LONG, "long", backlog, consumer)
        figures.add("memory after each million", consumer.peak_mb())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description="Measure the services and others' ways, on a Kafka of their own."
    )
    parser.add_argument("--rounds", type=_positive, default=3, help="of all ways in turn (default: 3)")
    parser.add_argument(
        "--backlog",
        type=_positive,
        default=500_000,
        help="people to be consumed in a round, at least (default: 500000)",
    )
    parser.add_argument("--lines", type=_positive, default=MILLION, help="of JSON in one request (default: 1000000)")
    parser.add_argument("--seconds", type=_positive, default=10, help="of posting at an even pace (default: 10)")
    parser.add_argument("--long", action="store_true", help="also drain a backlog of 5 million")
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FOLDER",
        help="whose speed.md and speed.svg get the figures, and the README.md of its folder",
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


if __name__ == "__main__":
    main()
