"""The topics of a stream, as its settings want them."""

from apps.chassis.kafka.topic_metadata import Right
from apps.chassis.kafka.topic_settings import Topic
from apps.chassis.settings import StreamSettings

LARGEST_DEAD_LETTER_BYTES = 16 * 1024 * 1024
"""Bytes: the largest record of a stream's topic must fit, with the headers of a dead letter."""
LEAST_MARKS_BYTES = 16 * 1024
"""Bytes below which the marks of a few hundred scattered dead letters do not fit, and redrives are refused."""


def record_topic(settings: StreamSettings, right: Right | None = None) -> Topic:
    """Return the topic of a stream's records; `right` is what the service must be allowed to do with it."""
    return Topic(settings.topic, settings.partitions, settings.replication, right=right)


def dead_letter_topic(settings: StreamSettings) -> Topic:
    """Return the topic of what could not be consumed; Kafka deletes nothing of it."""
    return Topic(
        settings.dead_letter_topic,
        settings.partitions,
        settings.replication,
        max_message_bytes=LARGEST_DEAD_LETTER_BYTES,
        kept_for_ever=True,
        right="write",
        kind="dead-letter topic",
        loss="dead letters are deleted",
        largest_of=settings.topic,
    )


def marks_topic(settings: StreamSettings) -> Topic:
    """Return the topic that records which dead letters were sent back; the last record of each key is kept."""
    return Topic(
        settings.marks_topic,
        1,
        settings.replication,
        kept_for_ever=True,
        compacted=True,
        least_bytes=LEAST_MARKS_BYTES,
        loss="what was sent back is forgotten, and would be sent back again",
    )
