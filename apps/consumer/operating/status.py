"""What the consumption of each stream is doing."""

from collections.abc import Mapping
from datetime import datetime

import msgspec

from apps.chassis.observability.logs import one_line, without_values
from apps.consumer.consuming.attempts import MAX_ERROR_CHARACTERS
from apps.consumer.consuming.findings import Finding
from apps.consumer.consuming.unplanned_moves import Move
from apps.consumer.operating.control import State
from apps.consumer.operating.lag import PartitionLag
from apps.consumer.operating.rebalances import Rebalance

WORST_FIRST: tuple[State, ...] = ("halted", "reconnecting", "retrying", "starting", "stopped", "paused", "running")


class FailingRecord(msgspec.Struct):
    """A record for which the handler failed, and the error; it is redelivered."""

    partition: int
    offset: int
    error: str


class StreamStatus(msgspec.Struct):
    """What the consumption of a stream is doing.

    `lag` is high watermark - committed, in offsets of `partitions`; `waiting_for_transaction` is the part
    of it behind an open transaction of another client, and `dead_letters_waiting_for_transaction` records of the
    dead-letter topic stand behind one. `failures` counts the failed attempts of the in-flight batch, `restarts` the
    connections that were replaced, `commit_failures` the commits that Kafka refused or did not answer. `skipped_count`
    records were not consumed because a position moved; `moves` are the newest such moves, without consuming and
    operator actions.
    `notes` are differences between a topic and the settings: the topic is used as it is. `passed_over_count` records
    were sent back from the dead letters for another group. `redriven_by_schedule_count` dead letters were sent back by
    `REDRIVE_AFTER`, and the next is due at `next_redrive_at`, as far as this instance does that. `last_rebalance` is
    null before the first one. `failing_since` is when what is retried first failed: a record, the opening of the
    handler's resource, or the writing of dead letters. `failing_record` is the first record that is retried alone.
    `next_retry_at` is when it is tried again at the latest. `last_error_at` is when the last error happened or, if it
    lasts (`last_error_lasts`), began.
    """

    running: bool
    state: State
    messages_consumed_count: int
    dead_lettered_count: int
    topic: str
    group_id: str
    member_id: str | None
    lag: int | None
    waiting_for_transaction: int | None
    lag_seconds: float | None
    partitions: list[PartitionLag]
    paused_partitions: list[int]
    restarts: int
    failures: int
    batch_age_seconds: float
    commit_failures: int
    skipped_count: int
    moves: list[Move]
    last_error: str | None
    started_at: str
    notes: list[str]
    throttled_seconds: float = 0.0
    passed_over_count: int = 0
    redriven_by_schedule_count: int = 0
    next_redrive_at: datetime | None = None
    last_rebalance: Rebalance | None = None
    failing_since: datetime | None = None
    failing_record: FailingRecord | None = None
    next_retry_at: datetime | None = None
    last_error_at: datetime | None = None
    dead_letters_waiting_for_transaction: int | None = None
    last_error_lasts: bool = False


class Status(StreamStatus, kw_only=True):
    """What the consumption of each stream is doing, and that of the first one.

    `state` is the worst of all streams, `running` is whether all of them run, and `messages_consumed_count` and
    `dead_lettered_count` are their sums.
    """

    streams: dict[str, StreamStatus]


def failing_record(finding: Finding | None, *, quotes: bool) -> FailingRecord | None:
    """Return what is shown of a record that is retried alone; with `quotes`, the error may quote its value."""
    if finding is None or finding.error is None:
        return None
    error = one_line(finding.error) if quotes else without_values(finding.error)
    return FailingRecord(finding.record.partition, finding.record.offset, error[:MAX_ERROR_CHARACTERS])


def status_of(by_stream: Mapping[str, StreamStatus]) -> Status:
    """Return the status of some streams, at least of one."""
    ones = list(by_stream.values())
    state = min((one.state for one in ones), key=WORST_FIRST.index)
    first = {name: getattr(ones[0], name) for name in StreamStatus.__struct_fields__}
    overall = {
        "running": state == "running",
        "state": state,
        "messages_consumed_count": sum(one.messages_consumed_count for one in ones),
        "dead_lettered_count": sum(one.dead_lettered_count for one in ones),
    }
    return Status(**{**first, **overall}, streams=dict(by_stream))
