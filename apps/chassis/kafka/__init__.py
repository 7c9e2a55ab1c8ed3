"""Connect any service to Kafka: clients, security, topics, consumer groups, reading a log, diagnosis.

Depends on `chassis.settings`, `observability` and `internals`; both services depend on it.
"""
