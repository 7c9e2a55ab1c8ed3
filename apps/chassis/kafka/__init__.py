"""Connect a service to Kafka: clients, security, topics, consumer groups, reading a topic, diagnosis.

Depends on `chassis.settings`, `observability` and `internals`; both services depend on it.
"""
