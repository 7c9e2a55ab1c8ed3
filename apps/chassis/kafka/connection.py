"""Keep a FastStream broker connected in the background, and replace it when it cannot work any more."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import Literal

from aiokafka.errors import KafkaConnectionError
from faststream.kafka import KafkaBroker

from apps.chassis.internals.client_parts import close_clients, fail_unwritten, producer_of
from apps.chassis.kafka.client_journal import ClientJournal
from apps.chassis.kafka.topic_settings import Unusable
from apps.chassis.observability.logs import one_line

log = logging.getLogger(__name__)

START_TIMEOUT_S = 45
"""Seconds that one attempt to connect may take; a member that waits for a rebalance may take longer."""
REPORT_AFTER_S = 8
"""Seconds after which an attempt to connect is logged with its cause. A rebalance may take 7."""
STOP_TIMEOUT_S = 6.5
"""Seconds for a broker to finish its batch, leave its group and close, before it is dropped."""
FAIL_UNWRITTEN_S = 1.5
"""Seconds of `STOP_TIMEOUT_S` for failing the last batches when they cannot be written."""
CHECK_EVERY_S = 5.0
"""Seconds between two checks of a connected client."""
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.2, 5.0
"""Seconds between two attempts to connect: they double from the first to the longest.

A connection that lasted longer than the longest is replaced at once.
"""


class Connection:
    """Holds one connected broker after another; `since` is when the last one connected (`time.monotonic`).

    `make` builds a broker. `prepare` is awaited before each connects (it creates topics); when it raises, the attempt
    is repeated. An idempotent producer that Kafka refused once, or a consume loop that died, cannot be repaired. Its
    broker is replaced, and closed in the background (see `replace`). The brokers' clients write to `journal`.
    """

    def __init__(
        self,
        make: Callable[[], KafkaBroker],
        prepare: Callable[[], Awaitable[None]],
        journal: ClientJournal | None = None,
    ) -> None:
        self.journal = journal or ClientJournal()
        self.state: Literal["closed", "connecting", "connected"] = "closed"
        self.error: str | None = None
        self.replaced = 0
        self.since = -math.inf
        self.current: KafkaBroker | None = None
        self._make = make
        self._prepare = prepare
        self._starting_since: float | None = None
        self._connected = asyncio.Event()
        self._broken = asyncio.Event()

    async def broker(self, timeout_s: float) -> KafkaBroker:
        """Return the connected broker. Raises `TimeoutError` when there is none within `timeout_s` seconds."""
        if self.current is not None:
            return self.current
        async with asyncio.timeout(timeout_s):
            while self.current is None:
                await self._connected.wait()
        return self.current

    async def connected(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for a connection; return whether there is one."""
        with suppress(TimeoutError):
            await self.broker(timeout_s)
        return self.current is not None

    def trouble(self, otherwise: str = "not connected yet") -> str | None:
        """Return what prevents the broker from connecting or working; None when nothing does.

        `otherwise` is returned for an attempt to connect that has met no error yet.
        """
        starts_or_works = self.current is not None or self._starting_since is not None
        waits = self.journal.awaited_rebalance() if starts_or_works else None
        return waits or self.failure() or (self.journal.with_quota(otherwise) if self.current is None else None)

    def failure(self) -> str | None:
        """Return the error that prevents the broker from connecting or working; None while it only waits."""
        if self.current is not None:
            return self.journal.lasting_failure()
        found = None if self._starting_since is None else self.journal.last_failure(self._starting_since)
        return found or self.error

    def replace(self, broker: KafkaBroker, reason: str) -> None:
        """Replace `broker` with a new one, unless it was replaced before."""
        if broker is self.current:
            log.warning("reconnecting to Kafka: %s", reason)
            self.error = reason
            self.replaced += 1
            self._let_go()
            self._broken.set()

    async def stay_connected(self) -> None:
        """Stay connected until cancelled; then close within 6.5 s."""
        loop = asyncio.get_running_loop()
        pause = FIRST_BACKOFF_S
        retired: set[asyncio.Task[None]] = set()
        broker: KafkaBroker | None = None
        try:
            while True:
                self.state = "connecting"
                broker = self._make()
                if await self._connect(broker):
                    await self._until_broken()
                    pause = 0.0 if time.monotonic() - self.since > MAX_BACKOFF_S else pause
                closing = loop.create_task(close(broker), name="close a replaced broker")
                retired.add(closing)
                closing.add_done_callback(retired.discard)
                broker = None
                await asyncio.sleep(pause)
                pause = min(max(2 * pause, FIRST_BACKOFF_S), MAX_BACKOFF_S)
        finally:
            self._let_go()
            try:
                if broker is not None:
                    await close(broker)
                await asyncio.gather(*retired)
            finally:
                self.state = "closed"

    async def _connect(self, broker: KafkaBroker) -> bool:
        servers = ", ".join(broker.specification.url)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._prepare()
            await self._start(broker)
        except Exception as error:  # noqa: BLE001 - any error is reported, and the connection tried again
            self._report(str(error) if isinstance(error, Unusable) else self._why_not_started(error, servers))
            return False
        finally:
            self._starting_since = None
        self._broken.clear()
        self.current, self.state, self.error = broker, "connected", None
        self.since = time.monotonic()
        self._connected.set()
        log.info("connected to Kafka at %s", servers)
        return True

    def _why_not_started(self, error: Exception, servers: str) -> str:
        is_unreachable = isinstance(error, KafkaConnectionError)
        reason = f"Kafka at {servers} is out of reach" if is_unreachable else one_line(error)
        found = self.journal.last_failure(self._starting_since or time.monotonic())
        return self.journal.with_quota(f"{reason}: {found}" if found else reason)

    async def _until_broken(self) -> None:
        """Wait until the broker must be replaced; log when its client fails, and when it works again."""
        known: str | None = None
        while not self._broken.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_EVERY_S):
                    await self._broken.wait()
            found = self.trouble() if self.current is not None else None
            if found and not known:
                log.warning("the Kafka client cannot work: %s", found)
            elif known and not found and self.current is not None:
                log.info("the Kafka client works again")
            known = found

    async def _start(self, broker: KafkaBroker) -> None:
        """Start a broker.

        Raises `TimeoutError` after 45 s, unless the broker waits for the rebalance of its group. Leaving the group
        would only begin another rebalance, which waits for the same member.
        """
        self._starting_since = time.monotonic()
        self.journal.joined()
        starting = asyncio.create_task(broker.start(), name="start a broker")
        try:
            for second in count(1):
                await asyncio.wait([starting], timeout=1.0)
                if starting.done():
                    return starting.result()
                if second == REPORT_AFTER_S:
                    log.warning("still connecting to Kafka: %s", self.trouble())
                if second >= START_TIMEOUT_S and self.journal.awaited_rebalance() is None:
                    raise TimeoutError(f"no connection within {START_TIMEOUT_S} s")
        finally:
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)

    def _let_go(self) -> None:
        self.current = None
        self._connected.clear()

    def _report(self, error: str) -> None:
        """Log a failed attempt, unless the previous one failed for the same reason."""
        if error != self.error:
            log.warning("cannot connect to Kafka, retrying until it works: %s", error)
        self.error = error


async def close(broker: KafkaBroker) -> None:
    """Close a broker, connected or still connecting, within 6.5 s.

    An idempotent producer waits for ever for its last batches when their partitions have no leader. They are failed
    after 5 s, so that no producer remains with its connections.
    """
    closing = asyncio.create_task(broker.stop(), name="close a broker")
    try:
        await asyncio.wait([closing], timeout=STOP_TIMEOUT_S - FAIL_UNWRITTEN_S)
        producer = producer_of(broker)
        if not closing.done() and producer is not None:
            await fail_unwritten(producer, FAIL_UNWRITTEN_S / 3)
        await asyncio.wait([closing], timeout=FAIL_UNWRITTEN_S / 2)
    finally:
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(FAIL_UNWRITTEN_S / 2):
                await close_clients(broker)
