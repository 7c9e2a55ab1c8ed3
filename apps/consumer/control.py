"""Stops and starts consumption, and watches it: a loop that died or wedged is replaced."""

import asyncio
from typing import Literal

from faststream.kafka.subscriber.usecase import BatchSubscriber

from apps.chassis.background import Background
from apps.chassis.cluster import Cluster
from apps.chassis.connection import Connection
from apps.consumer.subscriber import Consumption, ailment

State = Literal["starting", "running", "stopped", "reconnecting", "halted"]

JOINING = 8.0
"""Seconds that `start` waits for the group to give out its partitions, before it answers `starting`."""
FAILING = 3
"""Failures of the same batch after which the service counts as unable to do its job."""
ROUND = 2.0
"""Seconds between two looks at the consume loop."""


class Control:
    """What an operator may do with the consumption of a service. All calls may come at any time, together and twice."""

    def __init__(
        self, connection: Connection, cluster: Cluster, consumption: Consumption, background: Background
    ) -> None:
        self._connection = connection
        self._cluster = cluster
        self._consumption = consumption
        self._background = background
        self._holding: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    @property
    def subscriber(self) -> BatchSubscriber | None:
        """The subscriber that consumes now; None while there is no connection."""
        broker = self._connection.current
        if broker is None:
            return None
        (subscriber,) = broker.subscribers
        assert isinstance(subscriber, BatchSubscriber)  # noqa: S101 - the one registered by `subscribe`
        return subscriber

    @property
    def stopped(self) -> bool:
        """Whether an operator has stopped the consumption."""
        return self._holding is None

    async def start(self, *, accept: bool = False) -> None:
        """Join the group and consume; return once partitions are assigned, or after 8 s.

        After a halt, `accept` lets the bad records through.
        """
        async with self._changing:
            if self._holding is None or self._holding.done():
                self._consumption.resume(accept=accept)
                self._holding = self._background.start(self._connection.hold(), "consumption")
        await self._connection.connected(JOINING)

    async def stop(self) -> None:
        """Commit the batch in hand, leave the group and return.

        A batch whose handler fails, or takes more than 5 s, is given up uncommitted: it comes again, here or elsewhere.
        """
        async with self._changing:
            if self._holding is not None:
                self._consumption.leaving.set()
                self._holding.cancel()
                await asyncio.wait([self._holding])
                self._holding = None

    async def state(self) -> State:
        """Return what the consumption is doing, with a look at the cluster (2 s at most)."""
        if self._consumption.halted:
            return "halted"
        if self._holding is None:
            return "stopped"
        if self._connection.current is None:
            return "reconnecting" if self._connection.replaced else "starting"
        return "reconnecting" if self.trouble() or await self._cluster.trouble() else "running"

    async def health(self) -> tuple[bool, str, str]:
        """Return whether the consumer can do its job, the state of Kafka, and why not."""
        unreachable = await self._cluster.trouble()
        kafka = "connecting" if unreachable else "connected"
        if halted := self._consumption.halted:
            return False, kafka, f"halted: {halted}"
        if self.stopped:
            return True, kafka, "stopped by an operator"
        if unfit := unreachable or self.trouble() or self._background.failure:
            return False, kafka, unfit
        attempts = self._consumption.attempts
        if attempts.failures >= FAILING:
            return False, kafka, f"a batch failed {attempts.failures} times: {attempts.error}"
        return True, kafka, "people are consumed"

    def trouble(self) -> str | None:
        """Return why the consumption, which was started, consumes nothing, or None."""
        subscriber = self.subscriber
        if subscriber is None:
            return self._connection.error or "not connected yet"
        return ailment(subscriber, self._consumption)

    async def watch(self) -> None:
        """Have a consume loop that died or wedged replaced, and one that halted stopped, until cancelled."""
        while True:
            await asyncio.sleep(ROUND)
            if self._consumption.halted:
                await self.stop()
            broker = self._connection.current
            if broker is not None and (reason := self.trouble()):
                self._connection.replace(broker, reason)
