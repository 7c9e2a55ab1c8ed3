"""Write and read the metadata of commits: that this service made one, and which topic its offset belongs to."""

from uuid import UUID

from aiokafka.structs import OffsetAndMetadata

MARK = "consumer"
"""Begins the metadata of every commit of this service; the topic id follows where Kafka gives one.

Tools and other clients leave the metadata empty.
"""


def metadata_of(topic_id: UUID | None) -> str:
    """Return the metadata of a commit whose offset belongs to a topic; None where Kafka gives no ids."""
    return f"{MARK} {topic_id}" if topic_id else MARK


def is_own(commit: OffsetAndMetadata) -> bool:
    """Return whether an instance of this service made a commit."""
    return bool(commit.metadata.partition(" ")[0] == MARK)


def topic_id_in(commit: OffsetAndMetadata) -> UUID | None:
    """Return the id of the topic that the offset of a commit belongs to; None when it has none."""
    mark, _, topic_id = commit.metadata.partition(" ")
    try:
        return UUID(topic_id) if mark == MARK else None
    except ValueError:
        return None
