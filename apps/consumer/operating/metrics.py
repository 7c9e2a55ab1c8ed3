"""Measure the consumer: most figures are read when Prometheus asks; handler calls are counted as they happen."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric

from apps.chassis.kafka.connection import Connection
from apps.chassis.observability.metrics import SECONDS, counter, gauge
from apps.consumer.consuming.batch import Batch, Handle, Reject
from apps.consumer.consuming.commits import Commits
from apps.consumer.consuming.consumption import Consumption
from apps.consumer.consuming.redrive_addressing import FOR_ANOTHER_GROUP
from apps.consumer.consuming.unplanned_moves import REASONS
from apps.consumer.operating.control import State
from apps.consumer.operating.lag import Lag


class HandlerMetrics:
    """Counts and times the calls of handlers, each with a batch or a part of it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "consumer_handler_seconds",
            "Seconds that a call of the handler took.",
            ["stream"],
            buckets=SECONDS,
            registry=registry,
        )
        self._attempts = Counter(
            "consumer_handler_attempts",
            "Calls of the handler by how they ended.",
            ["stream", "result"],
            registry=registry,
        )

    def timed(self, stream: str, handle: Handle) -> Handle:
        """Return a handler of a stream that does the same, and whose calls are counted and timed."""
        seconds = self._seconds.labels(stream)
        ok, failed, rejected, broken_off = (
            self._attempts.labels(stream, result) for result in ("ok", "failed", "rejected", "broken_off")
        )

        async def measured(batch: Batch[Any]) -> object:
            start = time.perf_counter()
            result = failed
            try:
                returned = await handle(batch)
                named = batch.named().values()
                if returned is None and all(isinstance(one, Reject) for one in named):
                    result = rejected if named else ok
                return returned  # noqa: TRY300 - `finally` counts it
            except Reject:
                result = rejected
                raise
            except asyncio.CancelledError:
                result = broken_off
                raise
            finally:
                result.inc()
                seconds.observe(time.perf_counter() - start)

        return measured


def of_consumption(consumption: Consumption, connection: Connection, state: State) -> Iterator[Metric]:
    """Return what was consumed so far, and what the consumption is doing."""
    consumed = consumption.consumed
    yield counter("consumer_records_consumed", "Good records: handled, and committed with their batch.", consumed)
    yield counter(
        "consumer_records_dead_lettered",
        "Records written to the dead letters, by type of error.",
        {(reason,): number for reason, number in consumption.dead_letters.items()},
        ["reason"],
    )
    yield counter(
        "consumer_records_passed_over",
        "Records that were committed and are not for this group.",
        {(FOR_ANOTHER_GROUP,): consumption.passed_over},
        ["reason"],
    )
    failures = consumption.attempts.failures
    yield gauge("consumer_batch_failures", "Failed attempts of the in-flight batch; 0 when all is well.", failures)
    taken = "Seconds that the in-flight batch has taken so far, its commit included; 0 without one."
    yield gauge("consumer_batch_age_seconds", taken, consumption.batch_age)
    assigned = consumption.rebalances
    yield counter("consumer_rebalances", "Assignments of partitions by the group, the first of them too.", assigned)
    restarts = connection.replaced
    yield counter("consumer_restarts", "Consume loops that were replaced because they ended or hung.", restarts)
    states = {(each,): float(each == state) for each in get_args(State)}
    yield gauge("consumer_state", "1 for the state that the consumer is in.", states, ["state"])


def of_commits(commits: Commits, partitions: Sequence[int]) -> Iterator[Metric]:
    """Return what Kafka refused, and which positions moved.

    `partitions` have all series from the start: rates see no growth in a series that appears with a value.
    """
    refused = {(error,): number for error, number in commits.failures.items()}
    yield counter(
        "consumer_commit_failures",
        "Commits that Kafka refused or did not answer, by type of error.",
        refused,
        ["error"],
    )
    moves = sorted({*product(partitions, REASONS), *commits.moves.moved})
    yield counter(
        "consumer_records_skipped",
        "Records that were not consumed because their partition's position moved, by what moved it.",
        {(str(partition), reason): commits.moves.skipped[partition, reason] for partition, reason in moves},
        ["partition", "reason"],
    )
    yield counter(
        "consumer_position_moves",
        "Moves of a partition's position, on or back, by cause; without consuming and operator actions.",
        {(str(partition), reason): commits.moves.moved[partition, reason] for partition, reason in moves},
        ["partition", "reason"],
    )


def of_dead_letters(waiting: int | None) -> Iterator[Metric]:
    """Return how many dead letters nobody sees before a transaction ends; missing while that is not known."""
    yield gauge(
        "consumer_dead_letters_waiting_for_transaction_records",
        "Records of the dead-letter topic that stand behind another client's open transaction.",
        {} if waiting is None else waiting,
    )


def of_lag(lag: Lag, assigned: int) -> Iterator[Metric]:
    """Return how far consumption is behind; partitions that Kafka did not report are missing."""
    yield gauge("consumer_partitions", "Partitions that are assigned to this instance.", assigned)
    known = {(str(one.partition),): one for one in lag.partitions if one.lag is not None}
    yield gauge(
        "consumer_lag_records",
        "High watermark - committed, in records; of all partitions while stopped, halted or not connected.",
        {partition: one.lag or 0 for partition, one in known.items()},
        ["partition"],
    )
    yield gauge(
        "consumer_lag_waiting_for_transaction_records",
        "Records of the lag that stand behind another client's open transaction.",
        {partition: one.waiting_for_transaction or 0 for partition, one in known.items()},
        ["partition"],
    )
    ages = {(str(partition),): age for partition, age in lag.ages.items()}
    yield gauge("consumer_lag_seconds", "Age of the oldest record that is not consumed yet.", ages, ["partition"])
