"""What is measured, one function each: every one checks that what it timed was done."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import msgspec

from benchmarks.processes import BenchmarkFailed, Measured, Service, Took, answer_of, python, service
from benchmarks.watching import records_in, watch_drain
from contracts.person import Person

MAX_REQUEST_RECORDS = 100_000
"""People: the most that the producer makes in one request."""
LIST, LISTS, SENDERS = 500, 200, 4
"""People of a list, lists of a round, and connections that they are sent on."""
ONES, CALLERS = 10_000, 64
"""People of a round that are posted one by one, and connections that they are posted on."""
TEN, TENS = 10, 3_000
"""People of a small call, and small calls of a round."""
TUTORIAL_LISTS, TUTORIAL_BACKLOG = 10, 25_000
"""Lists of a round for the tutorial-style producer, which takes its time, and half of what is there to be consumed."""
POLL = 0.05
"""Seconds between two looks at how much was consumed."""
CONSUMED_WITHIN = 300.0
"""Seconds."""


class Series:
    """What one way of doing a thing gave, a figure a round: records a second, and processor microseconds a record."""

    def __init__(self) -> None:
        self._rounds: dict[int, Took] = {}

    def note(self, number: int, took: Took) -> None:
        """Add what it took in a round, to what it has taken in that round before."""
        records, seconds, cpu_seconds = self._rounds.get(number, (0, 0.0, 0.0))
        self._rounds[number] = Took(records + took.records, seconds + took.seconds, cpu_seconds + took.cpu_seconds)

    @property
    def rates(self) -> list[float]:
        """Records a second, round by round."""
        return [took.records / took.seconds for took in self._rounds.values()]

    @property
    def cpu(self) -> list[float]:
        """Processor microseconds a record, round by round."""
        return [took.cpu_seconds / took.records * 1e6 for took in self._rounds.values()]


def made(producer: Service, servers: str, topic: str, number: int = MAX_REQUEST_RECORDS) -> Took:
    """Have the service make people and send them, in one call; timed until the last byte of its answer."""
    with _written(servers, topic, number):
        cpu, start = producer.cpu_seconds(), time.perf_counter()
        answer = producer.call("POST", f"/producers/basic_producer?number_of_people={number}")
        took = Took(number, time.perf_counter() - start, producer.cpu_seconds() - cpu)
        people = msgspec.json.decode(answer, type=list[Person])
        if len(people) != number:
            raise BenchmarkFailed(f"{number} people asked for, {len(people)} in the answer")
    return took


def sent_by_raw_client(
    way: str, servers: str, topic: str, number: int = MAX_REQUEST_RECORDS, *, client: str = "raw"
) -> Took:
    """Have the raw client send as many, by `send_batch` or by `send`; or `librdkafka`, in its ways."""
    reported = answer_of(client, way, servers, topic, number)
    return Took(number, reported["seconds"], reported["cpu_seconds"])


def posted(service: Service, people: int, requests: int, connections: int, target: str = "/producers/people") -> Took:
    """Post requests of so many people each, on connections that each wait for their answer before they post again.

    A request of no people has no body.
    """
    cpu = service.cpu_seconds()
    reported = answer_of("caller", "post", service.port, target, connections, people, requests)
    return Took(people * requests, reported["seconds"], service.cpu_seconds() - cpu)


def lists_posted(producer: Service, servers: str, topic: str, lists: int = LISTS) -> Took:
    """Post lists of 500 people from 4 connections."""
    with _written(servers, topic, lists * LIST):
        return posted(producer, LIST, lists, SENDERS)


def ones_posted(service: Service, target: str = "/producers/people", number: int = ONES) -> Took:
    """Post people one by one from 64 connections."""
    return posted(service, 1, number, CALLERS, target)


def tens_posted(producer: Service) -> Took:
    """Post lists of ten people from 64 connections."""
    return posted(producer, TEN, TENS, CALLERS)


def few_made(producer: Service, number: int, calls: int) -> Took:
    """Have the service make so many people and send them, in each call from 64 connections."""
    took = posted(producer, 0, calls, CALLERS, f"/producers/basic_producer?number_of_people={number}")
    return took._replace(records=number * calls)


def p99_at(service: Service, per_second: float, seconds: float) -> float:
    """Return the 99th percentile, in milliseconds, of people posted one by one at an even pace."""
    number = int(per_second * seconds)
    reported = answer_of("caller", "post", service.port, "/producers/people", CALLERS, 1, number, per_second)
    return float(reported["p99"])


def lines_posted(servers: str, topic: str, number: int) -> tuple[Took, float]:
    """Send people as lines of JSON in one request; return what it took, and the most memory that the producer held.

    The producer is a new one, which has done nothing but a little warming up.
    """
    with service("producer", servers, topic) as producer:
        answer_of("caller", "lines", producer.port, min(number, MAX_REQUEST_RECORDS))
        with _written(servers, topic, number):
            cpu = producer.cpu_seconds()
            reported = answer_of("caller", "lines", producer.port, number)
            took = Took(number, reported["seconds"], producer.cpu_seconds() - cpu)
        return took, producer.peak_mb()


def drained_by_service(consumer: Service, servers: str, topic: str, group: str, backlog: int) -> Took:
    """Wait until the consumer service has committed the backlog; check that it has consumed each record."""
    took = watch_drain(servers, topic, group, backlog, consumer)
    status = json.loads(consumer.call("GET", "/consumers/status"))
    if status["messages_consumed_count"] != backlog or status["dead_lettered_count"]:
        raise BenchmarkFailed(f"{backlog} people were to be consumed: {status}")
    return took


def drained_by_raw_client(servers: str, topic: str, group: str, backlog: int, *, client: str = "raw") -> Took:
    """Have the raw client, or `librdkafka`, fetch, decode and commit the same backlog."""
    with python(f"benchmarks.{client}", "consume", servers, topic, group) as process:
        return watch_drain(servers, topic, group, backlog, Measured(process))


def drained_by_tutorial(consumer: Service, backlog: int) -> Took:
    """Wait until the tutorial-style consumer has handled the backlog.

    It says itself how far it came, for it commits every five seconds; timed from the first that is seen to the last.
    """
    deadline = time.perf_counter() + CONSUMED_WITHIN

    def wait_for(number: int) -> int:
        while (so_far := consumer.consumed()) < number:
            consumer.refuse_ended()
            if time.perf_counter() > deadline:
                raise BenchmarkFailed(f"{backlog} people were not consumed within {CONSUMED_WITHIN:g} s")
            time.sleep(POLL)
        return so_far

    first = wait_for(1)
    start, cpu = time.perf_counter(), consumer.cpu_seconds()
    last = wait_for(backlog)
    return Took(last - first, time.perf_counter() - start, consumer.cpu_seconds() - cpu)


def fill(producer: Service, servers: str, topic: str, upto: int) -> int:
    """Have the service make people until the topic has at least so many records; return how many it has."""
    count = partial(records_in, servers, topic)
    while (missing := upto - count()) > 0:
        producer.call("POST", f"/producers/basic_producer?number_of_people={min(missing, MAX_REQUEST_RECORDS)}")
    return count()


@contextmanager
def _written(servers: str, topic: str, number: int) -> Iterator[None]:
    """Check that the topic has got so many records during the block."""
    before = records_in(servers, topic)
    yield
    if (written := records_in(servers, topic) - before) != number:
        raise BenchmarkFailed(f"{number} records were to be written, and {written} were")
