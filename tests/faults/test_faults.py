"""Events flow for some minutes while everything breaks; then the answers are compared with the log.

A seed stands for a course of events: FAULTS_SEED. The run goes on until it has lasted FAULTS_SECONDS, has seen
FAULTS_COUNT faults and has sent FAULTS_RECORDS records, FAULTS_RATE a second at most. A long one:

    FAULTS_COUNT=100 FAULTS_RECORDS=2000000 FAULTS_RATE=4000 just test-faults
"""

import asyncio
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from callers import LIMIT, Crowd, Member, Poisoner
from chaos import KINDS, PARTITIONS, Stage, Step, perform, schedule
from ledger import Handled, Ledger, Letters, Log, compare
from marks import DONE
from network import Network
from receipts import Findings
from services import Pipeline, Service, wait_until

from tools.local_kafka import LocalKafka

HANDLER = str(Path(__file__).with_name("handler_service.py"))
PRODUCERS, CONSUMERS = 2, 3
FAILURES = "0.04"
"""Share of the handler's calls that fail."""
SLACK = 5.0
"""Seconds more than the contract's, for a machine on which three brokers and seven services share two cores."""
LINE_LIMIT = 2 * LIMIT
"""Seconds for a line: it may have to wait until those before it are given up."""
RECOVERY = 10.0
"""Seconds after the cluster's return within which everything works."""
TAKEOVER = 30.0
"""Seconds until a member that died is missed by its group and its partitions are given to others."""
DRAIN = 180.0
"""Seconds for everything to be consumed at the end."""
ENOUGH = 0.5
"""Share of the records that must have been acknowledged, or the run shows nothing."""
MAX_HANDLED_AGAIN = 2_000 * (CONSUMERS + 1) * 2
"""Records: the in-flight batch of a member has 2,000 at most."""
TRACE = re.compile(r"Traceback.*\n(?:(?:[ \t].*)?\n)*(\S.*)")
"""A stack trace, and the line with the error at its end."""


def setting(name: str, default: float) -> float:
    return float(os.environ.get(f"FAULTS_{name}", default))


@contextmanager
def everything(logs: Path, folder: Path, ledger: Ledger) -> Iterator[tuple[Pipeline, Stage]]:
    """Run three brokers, the network, two producers and three consumers."""
    with ExitStack() as stack:
        kafka = stack.enter_context(LocalKafka(brokers=3))
        ports = [int(address.rpartition(":")[2]) for address in kafka.bootstrap_servers]
        network = stack.enter_context(Network(PRODUCERS + CONSUMERS + 1, ports))
        pipeline = Pipeline(",".join(kafka.bootstrap_servers), logs)
        outage = folder / "outage"

        def reached_by(number: int) -> dict[str, str]:
            return {"KAFKA_BOOTSTRAP_SERVERS": network.bootstrap_servers(number), "EVENTS_REPLICATION": "3"}

        def producer(number: int) -> Service:
            return pipeline.producer(**reached_by(number))

        def consumer(number: int) -> Service:
            variables = {
                "LEDGER": str(folder / f"{number}-{time.monotonic_ns()}.ledger"),
                "OUTAGE": str(outage),
                "FAILURES": FAILURES,
            }
            return pipeline.running("consumer", HANDLER, **variables, **reached_by(number))

        def member(number: int, start: Callable[[int], Service]) -> Member:
            one = Member(number, partial(start, number))
            stack.callback(one.close)
            return one

        producers = [member(number, producer) for number in range(PRODUCERS)]
        consumers = [member(number, consumer) for number in range(PRODUCERS, PRODUCERS + CONSUMERS)]
        for one in (*producers, *consumers):
            one.service.until_healthy()
        newcomer = partial(consumer, PRODUCERS + CONSUMERS)
        yield (
            pipeline,
            Stage(kafka, network, producers, consumers, newcomer, outage, ledger, Handled(folder)),
        )


@pytest.mark.skipif(sys.platform != "linux", reason="needs many loopback addresses, and SIGSTOP")
def test_nothing_is_lost_and_nothing_untrue_is_reported_whatever_breaks(
    startable_kafka: None,
    logs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert startable_kafka is None
    caplog.set_level(logging.CRITICAL, "aiokafka")  # the poisoner's client has much to say of brokers that are away
    seed = int(setting("SEED", 1))

    def say(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)  # noqa: T201 - minutes pass, and the table is what this is for

    say(f"\nseed {seed}")
    ledger = Ledger()
    with everything(logs, tmp_path, ledger) as (pipeline, stage):
        stage.until_it_works()
        steps, memory = run(seed, pipeline, stage, say)
        wait_until(lambda: drained(pipeline), DRAIN, "for everything to be consumed")
        stage.handled.read_on()
        log, letters = Log(ledger), Letters(pipeline.topic, pipeline.group)
        asyncio.run(log.read(stage.kafka.bootstrap_servers, pipeline.topic))
        asyncio.run(letters.read(stage.kafka.bootstrap_servers, pipeline.dead_letter_topic, log))
    findings = compare(ledger, log, stage.handled, letters)
    if int(findings.counts["acknowledged"]) < ENOUGH * ledger.written():
        findings.violations.append(f"only {findings.counts['acknowledged']} of {ledger.written()} were acknowledged")
    judge_times(findings, ledger, steps)
    repeats = judge_repeats(findings, stage.handled, steps)
    judge_logs(findings, logs)
    for line in report(findings, ledger, steps, memory, repeats):
        say(line)
    if findings.violations:
        pytest.fail("\n".join([f"seed {seed}:", *findings.violations]), pytrace=False)


def run(seed: int, pipeline: Pipeline, stage: Stage, say: Callable[[str], None]) -> tuple[list[Step], Counter[str]]:
    """Let events flow and things break, until it has been enough."""
    steps: list[Step] = []
    memory: Counter[str] = Counter()
    rate = setting("RATE", 1_500)
    began = time.monotonic()

    def enough() -> bool:
        return (
            time.monotonic() - began >= setting("SECONDS", 120)
            and sum(len(step.faults) for step in steps) >= setting("COUNT", 16)
            and stage.ledger.written() >= setting("RECORDS", 0)
        )

    with (
        Crowd(stage.ledger, stage.producers, rate, seed),
        Poisoner(stage.ledger, stage.kafka.bootstrap_servers, pipeline.topic, PARTITIONS, seed),
    ):
        for calm, faults in schedule(seed):
            time.sleep(calm)
            steps.append(step := perform(stage, faults))
            for kind, size in stage.memory().items():
                memory[kind] = max(memory[kind], size)
            say(
                f"{step.began - began:6.1f} s  {', '.join(f'{f.kind} for {f.seconds:.1f} s' for f in faults)}: "
                f"works {step.recovered:.1f} s after"
            )
            if enough():
                break
    return steps, memory


def drained(pipeline: Pipeline) -> bool:
    """Return whether the group has committed everything that stands in the topic."""
    return pipeline.committed() == sum(pipeline.end_offsets().values())


def judge_times(findings: Findings, ledger: Ledger, steps: Sequence[Step]) -> None:
    """No caller waits too long, and everything works soon after what was away has come back."""
    if ledger.slowest > LIMIT + SLACK:
        findings.violations.append(f"a request took {ledger.slowest:.1f} s")
    if ledger.slowest_line > LINE_LIMIT + SLACK:
        findings.violations.append(f"a line waited {ledger.slowest_line:.1f} s for its receipt")
    for step in steps:
        limit = (RECOVERY if step.strikes_cluster else TAKEOVER) + SLACK
        if step.recovered > limit:
            findings.violations.append(f"after {step.faults} everything worked only {step.recovered:.1f} s later")


def judge_repeats(findings: Findings, handled: Handled, steps: Sequence[Step]) -> Counter[str]:
    """What was handled again was in flight when something broke: no more than a batch of each member, twice.

    What the handler itself did before it failed counts as not done.
    Returns how many were handled again, by what was broken.
    """
    batches = sorted((batch for batch in handled.batches if batch[1] == DONE), key=lambda batch: batch[0])
    identities = np.concatenate([batch[2] for batch in batches])
    times = np.repeat([batch[0] for batch in batches], [len(batch[2]) for batch in batches])
    again = np.ones(len(identities), dtype=bool)
    again[np.unique(identities, return_index=True)[1]] = False
    begun = np.array([step.began * 1e9 for step in steps])
    by_name: Counter[str] = Counter()
    for index, count in Counter((np.searchsorted(begun, times[again], side="right") - 1).tolist()).items():
        name = "before all faults" if index < 0 else steps[index].name
        by_name[name] += count
        if count > MAX_HANDLED_AGAIN:
            findings.violations.append(
                f"{count} records were handled again after {name}, more than {MAX_HANDLED_AGAIN}"
            )
    return by_name


def judge_logs(findings: Findings, logs: Path) -> None:
    """No service leaves a stack trace, but for those of the handler, which fails on purpose."""
    last_lines = Counter(
        re.sub(r"0x[0-9a-f]+", "0x…", trace[1]) + f" in {log.stem.partition('-')[2]}s"
        for log in logs.glob("*.log")
        for trace in TRACE.finditer(log.read_text(errors="replace"))
        if "handler_service.py" not in trace[0]
    )
    findings.refuse("stack traces in the services' logs", [f"{n} x {line}" for line, n in last_lines.most_common()])


def report(
    findings: Findings, ledger: Ledger, steps: Sequence[Step], memory: Counter[str], repeats: Counter[str]
) -> Iterator[str]:
    """Yield the lines of a table of all that happened."""
    yield from (f"{name:<42}{count:>12,}" for name, count in findings.counts.items())
    yield f"{'requests':<42}{ledger.requests:>12,}"
    yield f"{'slowest request (s)':<42}{ledger.slowest:>12.1f}"
    yield f"{'slowest line (s)':<42}{ledger.slowest_line:>12.1f}"
    yield from (f"{f'memory of a {kind} (MB)':<42}{size / 1e6:>12.0f}" for kind, size in memory.items())
    yield f"{'memory of the ledger (MB)':<42}{psutil.Process().memory_info().rss / 1e6:>12.0f}"
    faults = Counter(fault.kind for step in steps for fault in step.faults)
    yield f"{'faults':<42}{faults.total():>12}"
    yield from (f"  {kind:<40}{faults[kind]:>12}" for kind in KINDS)
    recovered = [step.recovered for step in steps if step.strikes_cluster]
    yield f"{'slowest recovery of the cluster (s)':<42}{max(recovered, default=0):>12.1f}"
    yield f"{'slowest recovery of all (s)':<42}{max(step.recovered for step in steps):>12.1f}"
    yield from (f"  handled again: {name:<60} {count:>8,}" for name, count in repeats.most_common())
