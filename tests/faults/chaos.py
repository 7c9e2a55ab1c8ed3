"""What is broken, when, and for how long: drawn from a seed, so that a run can be had again."""

import itertools
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Event
from typing import NamedTuple

import httpx
import psutil
from callers import LIMIT, Caller, Member, send_list
from ledger import Handled, Ledger
from network import Cut, Network
from services import Service, wait_until

from contracts.partitioning import partitions_of
from tools.local_kafka import LocalKafka

PARTITIONS = 6
NOTICED_WITHIN = 6.0
"""Seconds after which a service that can do nothing must say so."""
PATIENCE = 90.0
"""Seconds that everything may take to work again before the run is given up."""
PROBE_EVERY = 0.5
"""Seconds from one attempt to send to the next."""
FIRST_PROBER = 2_000
"""The number of the first probe as a caller: each is one by itself, they overtake each other."""
SLOWEST = 0.3
"""Seconds that a slow network adds to every request and every answer."""


def _probe_keys() -> list[int]:
    """Return the number of one key of each partition."""
    numbers = range(1_000, 1_100)
    partitions = partitions_of([b"k%d" % number for number in numbers], PARTITIONS)
    return [numbers[partitions.index(partition)] for partition in range(PARTITIONS)]


class Fault(NamedTuple):
    """Something that breaks: for how long, and whom it strikes (any number, to be taken modulo how many there are)."""

    kind: str
    seconds: float
    target: int


@dataclass
class Stage:
    """All that can be broken."""

    kafka: LocalKafka
    network: Network
    producers: Sequence[Member]
    consumers: Sequence[Member]
    new_consumer: Callable[[], Service]
    outage: Path
    ledger: Ledger
    handled: Handled
    probers: Iterator[int] = field(default_factory=lambda: itertools.count(FIRST_PROBER))

    @property
    def members(self) -> Sequence[Member]:
        """All services."""
        return [*self.producers, *self.consumers]

    def until_it_works(self) -> float:
        """Wait until new events reach the handler through every producer and partition; return how long it took.

        Afterwards every service says that it is well.
        """
        began = time.monotonic()
        seen: set[int] = set()
        with ThreadPoolExecutor(64) as pool, httpx.Client(timeout=PATIENCE) as http:
            proofs = [pool.submit(self._until_sent, producer, pool, http) for producer in self.producers]
            wanted = {number for proof in proofs for number in proof.result()}

            def handled() -> bool:
                for identities in self.handled.read_on():
                    seen.update(identities.tolist())
                return wanted <= seen

            wait_until(handled, PATIENCE, f"for {wanted} to be handled")
            for member in self.members:
                member.service.until_answers("/health-check", 200, PATIENCE)
            return time.monotonic() - began

    def _until_sent(self, producer: Member, pool: ThreadPoolExecutor, http: httpx.Client) -> range:
        probes: dict[Future[tuple[int, bool]], range] = {}
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            caller = Caller(self.ledger, producer, next(self.probers), 1, Random(0), Event(), http)
            numbers = self.ledger.claim(caller.number, PROBE_KEYS, [False] * PARTITIONS)
            probes[pool.submit(send_list, caller, numbers)] = numbers
            done, _ = wait(probes, PROBE_EVERY, FIRST_COMPLETED)
            for probe in done:
                numbers = probes.pop(probe)
                if probe.result()[1]:
                    return numbers
                time.sleep(0.1)
        raise AssertionError(f"producer {producer.number} did not send for {PATIENCE} s")

    def memory(self) -> dict[str, int]:
        """Return the most bytes that a process of each kind takes now."""
        found = {}
        for kind, members in (("producer", self.producers), ("consumer", self.consumers)):
            with suppress(psutil.NoSuchProcess):
                found[kind] = max(psutil.Process(m.service.process.pid).memory_info().rss for m in members)
        return found


PROBE_KEYS = _probe_keys()


@contextmanager
def broker_killed(stage: Stage, fault: Fault) -> Iterator[None]:
    """Any broker but two."""
    node = fault.target % 3
    stage.kafka.kill(node)
    try:
        yield
    finally:
        stage.kafka.start(node)


@contextmanager
def broker_suspended(stage: Stage, fault: Fault) -> Iterator[None]:
    """Connections stay open, and nothing answers."""
    node = fault.target % 3
    stage.kafka.suspend(node)
    try:
        yield
    finally:
        stage.kafka.resume(node)


@contextmanager
def majority_killed(stage: Stage, fault: Fault) -> Iterator[None]:
    """Two brokers of three: nothing can be written."""
    nodes = [(fault.target + n) % 3 for n in range(2)]
    for node in nodes:
        stage.kafka.kill(node)
    try:
        yield
        _must_tell(stage, fault, stage.members)
    finally:
        stage.kafka.start(*nodes)


@contextmanager
def cluster_killed(stage: Stage, fault: Fault) -> Iterator[None]:
    """All brokers at once."""
    for node in range(3):
        stage.kafka.kill(node)
    try:
        yield
        _must_tell(stage, fault, stage.members)
    finally:
        stage.kafka.start(*range(3))


def _must_tell(stage: Stage, fault: Fault, members: Sequence[Member]) -> None:
    """A service that can do nothing must say so after some seconds."""
    if fault.seconds < NOTICED_WITHIN:
        return
    for member in members:
        if member.unharmed(NOTICED_WITHIN) and member.service.answers("/health-check", 200):
            stage.ledger.complain(f"{member.name} says that it is well after {fault.seconds:.1f} s of {fault.kind}")


@contextmanager
def network_cut(stage: Stage, fault: Fault) -> Iterator[None]:
    """Between a service and one broker, or all."""
    member = stage.members[fault.target % len(stage.members)]
    which = fault.target // len(stage.members)
    brokers = range(3) if which % 2 else [which // 2 % 3]
    manner: Cut = "silent" if fault.target % 5 < 3 else "refused"
    with stage.network.cut(member.number, brokers, manner):
        yield
        if len(brokers) == 3:
            _must_tell(stage, fault, [member])


@contextmanager
def network_slowed(stage: Stage, fault: Fault) -> Iterator[None]:
    """Between a service and all brokers."""
    member = stage.members[fault.target % len(stage.members)]
    with stage.network.slowed(member.number, SLOWEST * (1 + fault.target % 3) / 3):
        yield


def service_killed(members: Callable[[Stage], Sequence[Member]]) -> "Break":
    """With no time for anything; started again a moment later."""

    @contextmanager
    def killed(stage: Stage, fault: Fault) -> Iterator[None]:
        member = _of(members(stage), fault)
        with member.struck():
            member.service.kill()
            member.service.http.close()
            try:
                yield
            finally:
                member.restart()

    return killed


def service_suspended(members: Callable[[Stage], Sequence[Member]]) -> "Break":
    """It does nothing for a while, and does not know it."""

    @contextmanager
    def suspended(stage: Stage, fault: Fault) -> Iterator[None]:
        member = _of(members(stage), fault)
        since = time.monotonic()
        with member.struck():
            member.service.process.send_signal(signal.SIGSTOP)
            try:
                yield
            finally:
                member.service.process.send_signal(signal.SIGCONT)
                member.note_frozen(since)

    return suspended


def service_restarted(members: Callable[[Stage], Sequence[Member]]) -> "Break":
    """As an orchestrator does: it must end in time, with status 0."""

    @contextmanager
    def restarted(stage: Stage, fault: Fault) -> Iterator[None]:
        member = _of(members(stage), fault)
        began = time.monotonic()
        with member.struck():
            member.service.terminate()
            try:
                status, took = member.service.exit_status(60), time.monotonic() - began
                if status != 0 or took > LIMIT + 1:
                    stage.ledger.complain(f"{member.name} ended with {status} {took:.1f} s after SIGTERM")
                yield
            finally:
                member.service.http.close()
                member.restart()

    return restarted


@contextmanager
def consumer_stopped(stage: Stage, fault: Fault) -> Iterator[None]:
    """By its operator; others take over."""
    member = _of(stage.consumers, fault)
    with member.struck():
        member.service.http.post("/consumers/stop")
        try:
            yield
        finally:
            member.service.http.post("/consumers/start")


@contextmanager
def consumer_paused(stage: Stage, fault: Fault) -> Iterator[None]:
    """By its operator; it keeps its partitions, and those wait."""
    member = _of(stage.consumers, fault)
    with member.struck():
        member.service.http.post("/consumers/pause")
        try:
            yield
        finally:
            member.service.http.post("/consumers/resume")


@contextmanager
def consumer_joined(stage: Stage, _: Fault) -> Iterator[None]:
    """And leaves again."""
    with stage.new_consumer():
        yield


@contextmanager
def handler_broken(stage: Stage, _: Fault) -> Iterator[None]:
    """Every handler fails, as when a database is away."""
    stage.outage.touch()
    try:
        yield
    finally:
        stage.outage.unlink()


def _of(members: Sequence[Member], fault: Fault) -> Member:
    return members[fault.target % len(members)]


def _producers(stage: Stage) -> Sequence[Member]:
    return stage.producers


def _consumers(stage: Stage) -> Sequence[Member]:
    return stage.consumers


Break = Callable[[Stage, Fault], AbstractContextManager[None]]


class Kind(NamedTuple):
    """A kind of fault: how it is brought about, how long it lasts, and what it strikes."""

    breaks: Break
    min_s: float
    max_s: float
    strikes: str


KINDS: dict[str, Kind] = {
    "broker killed": Kind(broker_killed, 2, 12, "cluster"),
    "broker suspended": Kind(broker_suspended, 2, 12, "cluster"),
    "majority killed": Kind(majority_killed, 3, 10, "cluster"),
    "cluster killed": Kind(cluster_killed, 3, 10, "cluster"),
    "network cut": Kind(network_cut, 2, 14, "cluster"),
    "network slowed": Kind(network_slowed, 4, 10, "cluster"),
    "producer killed": Kind(service_killed(_producers), 0, 3, "producers"),
    "producer suspended": Kind(service_suspended(_producers), 2, 12, "producers"),
    "producer restarted": Kind(service_restarted(_producers), 0, 3, "producers"),
    "consumer killed": Kind(service_killed(_consumers), 0, 8, "consumers"),
    "consumer suspended": Kind(service_suspended(_consumers), 2, 18, "consumers"),
    "consumer restarted": Kind(service_restarted(_consumers), 0, 5, "consumers"),
    "consumer stopped": Kind(consumer_stopped, 1, 8, "consumers"),
    "consumer paused": Kind(consumer_paused, 1, 8, "consumers"),
    "consumer joined": Kind(consumer_joined, 4, 10, "consumers"),
    "handler broken": Kind(handler_broken, 2, 6, "handler"),
}
TOGETHER = 0.3
"""Share of steps in which two faults of different kinds come together."""
CALM = (0.5, 3.0)
"""Seconds between two steps in which nothing is broken."""


def schedule(seed: int) -> Iterator[tuple[float, list[Fault]]]:
    """Yield for ever: seconds of calm, and what breaks then. Each kind comes once in sixteen faults."""
    chance = Random(seed)

    def deal() -> Iterator[Fault]:
        while True:
            for name in chance.sample(sorted(KINDS), len(KINDS)):
                kind = KINDS[name]
                yield Fault(name, chance.uniform(kind.min_s, kind.max_s), chance.randrange(30_000))

    faults = deal()
    kept: list[Fault] = []
    while True:
        step = [kept.pop() if kept else next(faults)]
        if chance.random() < TOGETHER:
            other = next(faults)
            if KINDS[other.kind].strikes == KINDS[step[0].kind].strikes:
                kept.append(other)
            else:
                step.append(other)
        yield chance.uniform(*CALM), step


class Step(NamedTuple):
    """What was broken, and how long it took until everything worked again; times are monotonic seconds."""

    faults: Sequence[Fault]
    began: float
    mended: float
    recovered: float

    @property
    def strikes_cluster(self) -> bool:
        """Whether only the cluster was away: then everything must work soon after its return."""
        return all(KINDS[fault.kind].strikes == "cluster" for fault in self.faults)

    @property
    def name(self) -> str:
        """What was broken."""
        return " + ".join(fault.kind for fault in self.faults)


def perform(stage: Stage, faults: Sequence[Fault]) -> Step:
    """Break, wait, mend, and wait until everything works."""
    began = time.monotonic()
    with ExitStack() as broken:
        for fault in faults:
            broken.enter_context(KINDS[fault.kind].breaks(stage, fault))
        time.sleep(max(fault.seconds for fault in faults))
    mended = time.monotonic()
    return Step(faults, began, mended, stage.until_it_works())
