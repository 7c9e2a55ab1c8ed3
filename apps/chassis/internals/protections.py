"""All protections: checked, and installed where they replace parts of a library."""

from apps.chassis.internals import (
    batch_subscriber,
    client_parts,
    fetched_batches,
    group_description,
    http_framing,
    kafka_client,
    member_commits,
    nearest_replica,
    partition_topic_ids,
    producer_epochs,
    rebalance_wait,
    record_batches,
    record_fetching,
    returned_memory,
    thread_stacks,
    transactions,
)
from apps.chassis.internals.canary import check
from apps.chassis.internals.kafka_client import watch_kafka_clients
from apps.chassis.internals.record_fetching import read_fetched_fast
from apps.chassis.internals.returned_memory import keep_little_memory

REACHES = (
    *batch_subscriber.REACHES,
    *client_parts.REACHES,
    *fetched_batches.REACHES,
    *group_description.REACHES,
    *http_framing.REACHES,
    *kafka_client.REACHES,
    *member_commits.REACHES,
    *nearest_replica.REACHES,
    *partition_topic_ids.REACHES,
    *producer_epochs.REACHES,
    *rebalance_wait.REACHES,
    *record_batches.REACHES,
    *record_fetching.REACHES,
    *returned_memory.REACHES,
    *thread_stacks.REACHES,
    *transactions.REACHES,
)


def protect() -> None:
    """Protect this process. Raises `UnexpectedLibrary`, with nothing installed, when a library is not as expected."""
    check(REACHES)
    watch_kafka_clients()
    read_fetched_fast()
    keep_little_memory()
