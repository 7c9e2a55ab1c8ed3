"""What is measured, one function each; every round measures the service and then the raw client."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import local

import msgspec

from apps.producer.people import PersonFactory
from benchmarks.processes import BenchmarkFailed, Measured, Service, call, python
from benchmarks.watching import Drained, create_topic, records_in, watch_drain
from contracts.person import Person, encode

LARGEST_REQUEST = 100_000
"""People: the most that the producer makes in one request."""
LOOK_AGAIN = 0.002
"""Seconds between two looks for a person that is not visible yet; a tenth of its time so far where that is longer, so
that looking does not make a stall longer."""
VISIBLE_WITHIN = 10.0
"""Seconds."""


@dataclass
class Comparison:
    """Records a second and CPU microseconds a record, a figure a round, of the service and of the raw client."""

    service: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    service_cpu: list[float] = field(default_factory=list)
    raw_cpu: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """The service's rate by the raw client's, round by round: what disturbed a round disturbed both."""
        return [service / raw for service, raw in zip(self.service, self.raw, strict=True)]


@dataclass
class Latency:
    """Milliseconds of each person: from before its POST to the answer to it, and to the GET answer that shows it."""

    acknowledged: list[float]
    visible: list[float]


class Producing:
    """Measures the producer: people made, sent, acknowledged and answered, against sending alone."""

    def __init__(self, producer: Service, bootstrap_servers: str, topic: str) -> None:
        self.comparison = Comparison()
        self.value_bytes = 0.0
        self.producer = producer
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._raw_topic = f"{topic}-raw"
        create_topic(bootstrap_servers, self._raw_topic)

    def produce(self, number: int) -> float:
        """Have the service produce people; return the seconds until the last byte of its answer.

        Afterwards, outside of that time, answer and topic are checked to hold all of them.
        """
        before = records_in(self._bootstrap_servers, self._topic)
        start = time.perf_counter()
        answer = self.producer.call("POST", f"/producers/basic_producer?number_of_people={number}")
        seconds = time.perf_counter() - start
        people = msgspec.json.decode(answer, type=list[Person])
        written = records_in(self._bootstrap_servers, self._topic) - before
        if not len(people) == written == number:
            raise BenchmarkFailed(f"{number} people asked for, {len(people)} in the answer, {written} in the topic")
        return seconds

    def round(self, number: int) -> None:
        """Measure one request of `number` people, and the raw client with as many."""
        cpu = self.producer.cpu_seconds()
        self.comparison.service.append(number / self.produce(number))
        self.comparison.service_cpu.append((self.producer.cpu_seconds() - cpu) / number * 1e6)
        with python("benchmarks.raw", "produce", self._bootstrap_servers, self._raw_topic, str(number)) as process:
            printed, _ = process.communicate(timeout=300)
        if process.returncode:
            raise BenchmarkFailed(f"the raw client ended with status {process.returncode}")
        raw = json.loads(printed)
        self.comparison.raw.append(number / raw["seconds"])
        self.comparison.raw_cpu.append(raw["cpu_seconds"] / number * 1e6)
        self.value_bytes = raw["value_bytes"]


def drained_by_service(consumer: Service, bootstrap_servers: str, topic: str, group: str, backlog: int) -> Drained:
    """Wait until the consumer service has committed the backlog; check that it has consumed each record."""
    drained = watch_drain(bootstrap_servers, topic, group, backlog, consumer)
    status = json.loads(consumer.call("GET", "/consumers/status"))
    if status["messages_consumed_count"] != backlog or status["dead_lettered_count"]:
        raise BenchmarkFailed(f"{backlog} people were to be consumed: {status}")
    return drained


def drained_by_raw_client(bootstrap_servers: str, topic: str, group: str, backlog: int) -> Drained:
    """Have the raw client fetch, decode and commit the same backlog."""
    with python("benchmarks.raw", "consume", bootstrap_servers, topic, group) as process:
        return watch_drain(bootstrap_servers, topic, group, backlog, Measured(process))


def latency(producer: Service, consumer: Service, posts: int, per_second: float) -> Latency:
    """Post people one by one at an even pace, and look for each until the consumer shows it.

    The pace does not wait for answers, and the time of a person runs from when its turn was: a stall counts for all
    whom it delays.
    """
    people = PersonFactory.batch(posts)
    connections = local()
    acknowledged, visible = [0.0] * posts, [0.0] * posts

    def connect() -> None:
        connections.producer, connections.consumer = producer.connection(), consumer.connection()

    def follow(start: float, index: int) -> None:
        due = start + index / per_second
        time.sleep(max(0.0, due - time.perf_counter()))
        person = people[index]
        call(connections.producer, "POST", "/producers/people", encode(person))
        acknowledged[index] = (time.perf_counter() - due) * 1e3
        while person.id.encode() not in call(
            connections.consumer, "GET", f"/consumers/messages?limit=1&key={person.id}"
        ):
            if (so_far := time.perf_counter() - due) > VISIBLE_WITHIN:
                raise BenchmarkFailed(f"a person was not visible within {VISIBLE_WITHIN:g} s")
            time.sleep(max(LOOK_AGAIN, so_far / 10))
        visible[index] = (time.perf_counter() - due) * 1e3

    with ThreadPoolExecutor(32, initializer=connect) as pool:
        list(pool.map(partial(follow, time.perf_counter() + 0.5), range(posts)))
    return Latency(acknowledged, visible)
