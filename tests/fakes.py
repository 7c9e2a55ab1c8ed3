"""Stand-ins for Kafka, its clients and a clock: what tests pass where a service has the real ones."""

from dataclasses import replace

from apps.chassis.kafka.connection import Connection
from apps.chassis.kafka.kafka import REAL

A_WHILE = 0.01
"""Seconds: a wait that is to pass."""


class ImpatientConnection(Connection):
    """A connection that nobody waits for, because no Kafka answers."""

    async def connected(self, patience: float) -> bool:
        return await super().connected(min(patience, A_WHILE))


NO_KAFKA = replace(REAL, connection=ImpatientConnection)
"""What connects a service whose Kafka never answers."""
