"""The errors with which a call to Kafka fails, for code that need not know the client library."""

from aiokafka.errors import KafkaError

KAFKA_ERRORS = (KafkaError, OSError)
"""`TimeoutError` is an `OSError`."""
