"""Record what happens to the Kafka clients of one purpose: failures, throttling and rebalances.

The journal outlives each client: a new client must respect the throttling that the old one caused.
"""

import asyncio
import math
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Self

import msgspec

from apps.chassis.internals.producer_epochs import ProducerEpochs
from apps.chassis.observability.logs import one_line

FORGOTTEN_AFTER_S = 30.0
"""Seconds after which a failure that was not repeated no longer counts."""
RECENT_S = 5.0
"""A failure counts as ongoing within this many seconds of its last occurrence, unless it is of rarer requests."""
THROTTLED_LATELY_S = 2.0
"""Seconds after the end of throttling for which it is still reported: the next answer may announce more."""
HELD_UP_FOR_S = 10.0
"""Seconds after an announced delay in which missing answers are put down to it: each waiting request adds its own."""
LASTING_S = 5.0
"""Seconds that a failure must last before a connected client counts as failed. A new leader is found sooner."""
NORMAL_REBALANCE_S = 7.0
"""Seconds that a normal rebalance may take."""
THROTTLED = "Kafka throttles this client by its quota"
IN_WORDS = {
    "AskForTopics": "asking for topics at",
    "Fetch": "reading records from",
    "Heartbeat": "staying in the group at",
    "InitProducerId": "beginning to write at",
    "JoinGroup": "joining the group at",
    "Metadata": "asking for topics at",
    "Offset": "asking for offsets at",
    "OffsetCommit": "committing at",
    "OffsetFetch": "asking for committed offsets at",
    "Produce": "writing records to",
    "SyncGroup": "joining the group at",
}
"""What the requests that repeat themselves do; Kafka's name of a request says it to few operators."""

REFUSED_MEMBERS = {
    23: "it is of another kind, or has other assignors: give this service a group of its own (<STREAM>_GROUP_ID)",
    26: (
        "its brokers do not allow the session timeout (group.min.session.timeout.ms, group.max.session.timeout.ms): "
        "set Policy(session_timeout_s)"
    ),
    81: "it has as many members as its brokers allow (group.max.size): end one, or raise it",
}
"""Why a group takes no further member, and what to do, by Kafka's error code."""


class Failure(msgspec.Struct):
    """A failing request or connection. `first` and `last` are when it first and last failed (`time.monotonic`).

    It counts as ongoing for `ongoing_s` seconds after the last time.
    """

    reason: str
    first: float
    last: float
    is_request: bool
    ongoing_s: float


class ClientJournal:
    """Records what happens to the clients of one purpose.

    `throttled_seconds` is the total delay by quotas, `epochs` are those of the producers.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.throttled_seconds = 0.0
        self.epochs = ProducerEpochs()
        self._throttle_end = -math.inf
        self._now = now
        self._failures: dict[Hashable, Failure] = {}
        self._throttled_until: dict[Hashable, float] = {}
        self._joining: tuple[str, float] | None = None
        self._rebalance_end = -math.inf
        self._messages: dict[tuple[str, int], str] = {}

    def failed(self, what: Hashable, reason: str, *, is_request: bool = True, ongoing_s: float = RECENT_S) -> None:
        """Record that a request (or a connection) failed; `what` identifies it."""
        now = self._now()
        before = self._failures.get(what)
        first = before.first if before and now - before.last < FORGOTTEN_AFTER_S else now
        self._failures[what] = Failure(reason, first, now, is_request, ongoing_s)
        self._failures = {key: one for key, one in self._failures.items() if now - one.last < FORGOTTEN_AFTER_S}

    def succeeded(self, what: Hashable) -> None:
        """Record that a request or a connection works again."""
        if self._failures:
            self._failures.pop(what, None)

    def reason_of(self, what: Hashable) -> str | None:
        """Return why a request or a connection is failing, or None."""
        failure = self._failures.get(what)
        return failure.reason if failure else None

    def last_failure(self, since: float = -math.inf) -> str | None:
        """Return the reason of the newest failure since a time (`time.monotonic`) without a later success, or None."""
        now = self._now()
        found = [one for one in self._failures.values() if one.last >= since and now - one.last < FORGOTTEN_AFTER_S]
        return max(found, key=lambda one: one.last).reason if found else None

    def lasting_failure(self) -> str | None:
        """Return the reason of the oldest failure of a request that has lasted 5 s and is ongoing, or None.

        Failures of connections do not count: an unreachable broker that gets no requests does no harm.
        """
        now = self._now()
        lasting = [one for one in self._failures.values() if one.is_request and one.last - one.first >= LASTING_S]
        found = [one for one in lasting if now - one.last < one.ongoing_s]
        return min(found, key=lambda one: one.first).reason if found else None

    def why_silent(self, since: float) -> str | None:
        """Return what explains that Kafka has not answered since a time (`time.monotonic`), or None."""
        known = self.awaited_rebalance(after_s=0.0) or self.last_failure(since)
        return known or (THROTTLED if self.is_held_up() else None)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Give a `TimeoutError` of the block the cause that is known."""
        began = self._now()
        try:
            yield
        except TimeoutError:
            if (why := self.why_silent(began)) is None:
                raise
            raise TimeoutError(why) from None

    @asynccontextmanager
    async def answers_within(self, seconds: float) -> AsyncIterator[None]:
        """Limit the block to some seconds. Raises `TimeoutError` then, with the cause that is known."""
        with self.explaining():
            async with asyncio.timeout(seconds):
                yield

    def throttled(self, broker: Hashable, seconds: float) -> None:
        """Record that a broker delays its answer to the next request by this many seconds."""
        self.throttled_seconds += seconds
        self._throttle_end = max(self._throttle_end, self._now() + seconds)
        self._throttled_until[broker] = max(self._now() + seconds, self._throttled_until.get(broker, 0.0))

    def throttled_for(self, broker: Hashable = None) -> float:
        """Return the seconds for which a broker (by default the slowest) still throttles; 0 without throttling."""
        if not self._throttled_until:
            return 0.0
        now = self._now()
        self._throttled_until = {key: until for key, until in self._throttled_until.items() if until > now}
        until = self._throttled_until.values() if broker is None else [self._throttled_until.get(broker, now)]
        return max(until, default=now) - now

    def since_throttling(self) -> float:
        """Return the seconds since the last throttling ended: negative while it lasts, infinite if there was none."""
        return self._now() - self._throttle_end

    def is_held_up(self) -> bool:
        """Return whether answers may be missing because a quota delays them (KIP-219)."""
        return self.since_throttling() < HELD_UP_FOR_S

    def throttling(self) -> str | None:
        """Return a sentence about the throttling by a quota, or None."""
        if self.since_throttling() > THROTTLED_LATELY_S:
            return None
        left_s = self.throttled_for()
        return THROTTLED + (f", for {left_s:.1f} s more" if left_s else "")

    def with_quota(self, failure: str) -> str:
        """Return why Kafka cannot be used, with the quota if one may be the reason."""
        return f"{failure}; {THROTTLED}" if self.is_held_up() and THROTTLED not in failure else failure

    def with_throttling(self, detail: str) -> str:
        """Return a health detail, with a sentence about throttling if there is any."""
        throttling = self.throttling()
        return f"{detail}; {throttling}" if throttling else detail

    def since_excused_silence(self) -> float:
        """Return the seconds since Kafka last had a reason to send no records: a throttling, or an awaited rebalance.

        Negative while it may last, infinite if there was none.
        """
        return self._now() - max(self._throttle_end, self._rebalance_end)

    def joins(self, group: str, longest_s: float) -> None:
        """Record that a member waits for a rebalance, up to `longest_s`; a repeated request continues the wait."""
        self._rebalance_end = self._now() + longest_s
        if self._joining is None or self._joining[0] != group:
            self._joining = (group, self._now())

    def joined(self) -> None:
        """Record that the member no longer waits for a rebalance."""
        self._joining = None
        self._rebalance_end = min(self._rebalance_end, self._now())

    def awaited_rebalance(self, after_s: float = NORMAL_REBALANCE_S) -> str | None:
        """Return a sentence about a rebalance that takes longer than `after_s` seconds, or None."""
        if self._joining is None:
            return None
        group, since = self._joining
        seconds = self._now() - since
        return f"waiting for the rebalance of group {group} since {seconds:.0f} s" if seconds > after_s else None

    def refused(self, topic: str, partition: int, message: str) -> None:
        """Keep the broker's message about a batch that it refused."""
        self._messages[topic, partition] = message

    def take_message(self, topic: str, partition: int) -> str | None:
        """Return and forget the broker's message about the last refused batch of a partition, or None."""
        return self._messages.pop((topic, partition), None)


class ClientId(str):  # noqa: SLOT000 - it has an attribute
    """The client id of the clients of one purpose. It carries their journal.

    Brokers apply quotas by client id, so each purpose has its own.
    """

    journal: ClientJournal

    def __new__(cls, name: str) -> Self:
        """Return a client id with a new journal."""
        made = super().__new__(cls, name)
        made.journal = ClientJournal()
        return made


def in_words(request: str) -> str:
    """Return what a request does, ready for the name of a broker."""
    return IN_WORDS.get(request, f"the request {request} to")


def why_unreachable(error: BaseException) -> str:
    """Return why a connection could not be opened, as a phrase."""
    match error:
        case TimeoutError() if not error.strerror:
            return "no answer in time"
        case socket.gaierror():
            return f"the name cannot be resolved ({error.strerror})"
        case ConnectionRefusedError():
            return "connection refused"
        case ssl.SSLError():
            return one_line(error)
        case OSError() if error.strerror:
            return error.strerror
        case _:
            return one_line(error)
