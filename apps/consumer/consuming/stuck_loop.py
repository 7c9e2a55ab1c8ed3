"""Detect why a consume loop has stopped consuming: the watch then replaces its connection."""

import math
import time
from datetime import UTC, datetime

from faststream.kafka.subscriber.usecase import BatchSubscriber

from apps.chassis.internals.batch_subscriber import is_in_flight, why_ended
from apps.chassis.internals.record_fetching import passed_over
from apps.chassis.observability.logs import without_values
from apps.consumer.consuming.commits import Commits
from apps.consumer.consuming.consumption import Consumption
from apps.consumer.consuming.subscriber import MAX_POLL_INTERVAL_MS

STALE_S = 20.0
"""Seconds without a poll, and without an in-flight batch, after which a consume loop counts as stuck."""


def why_stuck(  # noqa: PLR0913 - what it looks at, and for how long
    subscriber: BatchSubscriber,
    consumption: Consumption,
    commits: Commits,
    since_excused: float = math.inf,
    since_trouble: float = math.inf,
    *,
    stale_s: float = STALE_S,
    max_poll_interval_s: float = MAX_POLL_INTERVAL_MS / 1_000,
) -> str | None:
    """Return why a started consume loop has stopped consuming, or None.

    A broker sends nothing during a throttling or a rebalance: silence counts from its end, `since_excused` seconds ago.
    So do silence and failing commits from when Kafka could last not be used, `since_trouble` seconds ago.
    A loop can end, or stop polling without a batch in flight, while `running` is true and the broker answers a ping:
    after a cancelled coordination task, or when the right to the group was revoked and restored.
    """
    now, consumer = time.monotonic(), subscriber.consumer
    if ended := why_ended(subscriber):
        error = f": {without_values(ended)}" if isinstance(ended, BaseException) else ""
        return f"the consume loop has ended{error}"
    if consumer is None:
        return "the consume loop was not started"
    if is_in_flight(subscriber):
        if (since := commits.retrying_since) and min(failing := now - since, since_trouble) > stale_s:
            return f"the commit of the in-flight batch has failed since {_time_of_day(failing)}: {commits.error}"
        too_long = (busy := consumption.batch_age) > max_poll_interval_s
        return f"the in-flight batch began at {_time_of_day(busy)}: Kafka revoked its partitions" if too_long else None
    ages = consumption.answers.ages(consumer, consumer.assignment() - consumer.paused())
    passed = passed_over(consumer)  # a deep offset in a compressed batch: nothing is fetched until then
    last = max(consumption.idle_since, passed.at if passed else 0.0)
    silent = min([now - last, *ages])
    is_stuck = ages and min(silent, since_excused, since_trouble) > stale_s
    return f"the consume loop has not polled since {_time_of_day(silent)}" if is_stuck else None


def _time_of_day(seconds_ago: float) -> str:
    """Return the time of day then: unlike the seconds since, it stays the same while an error lasts."""
    return f"{datetime.fromtimestamp(time.time() - seconds_ago, UTC):%H:%M:%S} UTC"
