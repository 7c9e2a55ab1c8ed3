"""The replica that a consumer fetches a partition from, chosen again for each new position: a PROTECTION.

A leader names a follower in the consumer's rack that has its position (KIP-392). aiokafka fetches from it for the next
10 s, also after a seek or a rebalance. That follower may not have the new position yet, or still serve the deleted
topic of a recreated one. Reaches for the followers that a consumer's fetcher remembers. Lost without it: the first
records of a recreated topic, while a follower serves the deleted one in its place. No upstream issue is known.
"""

from collections.abc import Iterable

from aiokafka import AIOKafkaConsumer, TopicPartition

REACHES = (
    "aiokafka.consumer.consumer:AIOKafkaConsumer.start uses _fetcher",
    "aiokafka.consumer.fetcher:Fetcher._select_read_replica uses _preferred_read_replica",
    "aiokafka.consumer.fetcher:Fetcher._update_preferred_read_replica uses _preferred_read_replica",
)


def ask_leaders(consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]) -> None:
    """Fetch next from the leader of each partition; it names the replica to fetch from."""
    for tp in partitions:
        consumer._fetcher._preferred_read_replica.pop(tp, None)
