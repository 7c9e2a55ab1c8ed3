"""Errors of Kafka that aiokafka does not know: it has none after code 79, and leaves some before out."""

NEWER_ERRORS = {
    73: ("TopicDeletionDisabledError", False),
    74: ("FencedLeaderEpochError", True),
    75: ("UnknownLeaderEpochError", True),
    76: ("UnsupportedCompressionTypeError", False),
    77: ("StaleBrokerEpochError", False),
    78: ("OffsetNotAvailableError", True),
    80: ("PreferredLeaderNotAvailableError", True),
    81: ("GroupMaxSizeReachedError", False),
    82: ("FencedInstanceIdError", False),
    87: ("InvalidRecordError", False),
    88: ("UnstableOffsetCommitError", True),
    89: ("ThrottlingQuotaExceededError", True),
    90: ("ProducerFencedError", False),
}
"""Kafka's error codes that aiokafka calls `UnknownError`, each with its name and whether Kafka says to retry."""
