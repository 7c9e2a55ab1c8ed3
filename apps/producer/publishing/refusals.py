"""Remember the batches that Kafka refused: health reports them for a while."""

import time

from aiokafka import errors

from apps.chassis.kafka.newer_errors import NEWER_ERRORS

REFUSALS = (
    errors.ClusterAuthorizationFailedError,
    errors.InvalidMessageError,
    errors.InvalidTimestampError,
    errors.InvalidTopicError,
    errors.MessageSizeTooLargeError,
    errors.OutOfOrderSequenceNumber,
    errors.PolicyViolationError,
    errors.RecordListTooLargeError,
    errors.TopicAuthorizationFailedError,
    errors.UnknownProducerId,
    errors.UnsupportedForMessageFormatError,
)
"""Errors with which a broker answers that it has not written the batch."""
OF_A_PRODUCER = (errors.OutOfOrderSequenceNumber, errors.UnknownProducerId)
"""Refusals that the next producer does not meet, like those of a recreated topic."""
OF_A_TOPIC = (errors.ClusterAuthorizationFailedError, errors.InvalidTopicError, errors.TopicAuthorizationFailedError)
"""Refusals that hold for all partitions, and so are over when one accepts records."""
INVALID_RECORD = NEWER_ERRORS[87][0]
"""The name of an error that aiokafka does not define: the topic's settings do not allow a record."""


def is_refusal(error: BaseException) -> bool:
    """Return whether a broker answered that it has not written a batch."""
    return isinstance(error, REFUSALS) or type(error).__name__ == INVALID_RECORD


class Refusals:
    """The last refusal of each partition. It counts for `recent_s` seconds, or until records are accepted again."""

    def __init__(self, recent_s: float = 30.0) -> None:
        self.recent_s = recent_s
        self._by_partition: dict[int, tuple[float, str, bool]] = {}

    def add(self, partition: int, error: BaseException, why: str) -> None:
        """Note that a batch was refused, if the next producer may meet that too."""
        if not isinstance(error, OF_A_PRODUCER):
            self._by_partition[partition] = time.monotonic(), why, isinstance(error, OF_A_TOPIC)

    def clear(self, partition: int) -> None:
        """Note that a partition accepts records."""
        if self._by_partition:
            found = self._by_partition.items()
            self._by_partition = {number: one for number, one in found if number != partition and not one[2]}

    def newest(self) -> str | None:
        """Return why the newest recently refused batch was refused, or None."""
        at, why, _ = max(self._by_partition.values(), default=(0.0, "", False))
        return why if why and time.monotonic() - at < self.recent_s else None
