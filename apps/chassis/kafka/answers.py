"""Observe when the partitions of a client last answered, by a clock that nobody sets."""

import time
from collections.abc import Collection

from aiokafka import AIOKafkaConsumer, TopicPartition


class Answers:
    """Observes when partitions last answered. The client's own times move with the clock of the machine."""

    def __init__(self) -> None:
        self._last: dict[TopicPartition, tuple[int | None, float]] = {}

    def ages(self, consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]) -> list[float]:
        """Return the seconds since each partition last answered, or since the first look at it."""
        now = time.monotonic()
        for tp in partitions:
            answer = consumer.last_poll_timestamp(tp)
            if tp not in self._last or self._last[tp][0] != answer:
                self._last[tp] = answer, now
        return [now - self._last[tp][1] for tp in partitions]
