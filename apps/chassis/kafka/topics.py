"""Describe the topics of a stream as its settings want them."""

from apps.chassis.kafka.topic_metadata import Permission
from apps.chassis.kafka.topic_settings import Topic
from apps.chassis.settings import StreamSettings

MAX_DEAD_LETTER_BYTES = 16 * 1024 * 1024
"""`max.message.bytes` of a dead-letter topic: the largest record must fit, with the headers of a dead letter."""
MIN_MARKS_BYTES = 16 * 1024
"""Smallest `max.message.bytes` of a marks topic: the marks of a few hundred scattered dead letters must fit."""


def record_topic(settings: StreamSettings, permission: Permission | None = None) -> Topic:
    """Return the topic of a stream's records; `permission` is what the service needs to do with it."""
    return Topic(settings.topic, settings.partitions, settings.replication, permission=permission)


def dead_letter_topic(settings: StreamSettings) -> Topic:
    """Return the dead-letter topic; Kafka must delete nothing of it before its retention ends."""
    kept_s = settings.dead_letter_retention_s
    return Topic(
        settings.dead_letter_topic,
        settings.partitions,
        settings.replication,
        max_message_bytes=MAX_DEAD_LETTER_BYTES,
        kept=True,
        retention_ms=None if kept_s is None else 1_000 * kept_s,
        permission="write",
        kind="dead-letter topic",
        loss="dead letters are deleted",
        source=settings.topic,
    )


def marks_topic(settings: StreamSettings) -> Topic:
    """Return the marks topic, which records what was sent back; Kafka keeps the last record of each key."""
    return Topic(
        settings.marks_topic,
        1,
        settings.replication,
        kept=True,
        compacted=True,
        min_bytes=MIN_MARKS_BYTES,
        loss="what was sent back is forgotten, and could be sent back again",
        needed_by="redrives, discards and purges",
    )
