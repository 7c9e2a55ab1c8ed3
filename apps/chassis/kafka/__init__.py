"""Kafka for any service: client options, security, connection, topics, reading a log, diagnosis of what is refused.

Depends on `chassis.settings`, `observability` and `internals`; both services depend on it.
"""
