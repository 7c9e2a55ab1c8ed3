"""The errors of a failed call to Kafka, for code that does not use the client library."""

from aiokafka.errors import KafkaError

KAFKA_ERRORS = (KafkaError, OSError)
"""`TimeoutError` is an `OSError`."""
