"""Watch the event loop from a thread, because a blocked loop cannot report itself."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from apps.chassis.internals.thread_stacks import stack_of_thread

log = logging.getLogger(__name__)

LOOP_WATCH = "loop_watch"
"""The key of an application's state that holds its `LoopWatch`."""
ASK_EVERY_S = 0.25
"""Seconds between two checks of the loop."""
BLOCKED_AFTER_S = 1.0
"""Seconds without a turn after which the loop counts as blocked."""
REPORTED_FOR_S = 60.0
"""Seconds after its end for which health mentions a block."""
LATE_S = 0.5
"""Seconds by which the watching thread may be late before the whole process counts as suspended."""


class Block(NamedTuple):
    """A block of the loop: how long it took, and when it ended (`time.monotonic`)."""

    seconds: float
    ended: float


class LoopWatch(Collector):
    """Checks four times a second whether the loop turns; logs, counts and reports blocks of a second or more."""

    def __init__(
        self,
        *,
        ask_every_s: float = ASK_EVERY_S,
        blocked_after_s: float = BLOCKED_AFTER_S,
        reported_for_s: float = REPORTED_FOR_S,
    ) -> None:
        self.blocks = 0
        self.blocked_s = 0.0
        self._ask_every_s = ask_every_s
        self._blocked_after_s = blocked_after_s
        self._reported_for_s = reported_for_s
        self._last: Block | None = None
        self._asked: float | None = None
        self._closed = threading.Event()

    @property
    def without_turn_s(self) -> float:
        """The seconds for which the loop has not answered the current check; 0 when it has."""
        asked = self._asked
        return 0.0 if asked is None else time.monotonic() - asked

    def recent_block(self) -> str | None:
        """Return a sentence about a recent block of the loop, or None."""
        last = self._last
        since = 0.0 if last is None else time.monotonic() - last.ended
        if last is None or since > self._reported_for_s:
            return None
        return f"the event loop was blocked for {last.seconds:.1f} s until {since:.0f} s ago: the log has the stack"

    @contextmanager
    def open(self) -> Iterator[None]:
        """Watch the running loop until the end of the block."""
        arguments = asyncio.get_running_loop(), threading.get_ident()
        threading.Thread(target=self._watch, args=arguments, name="watch of the event loop", daemon=True).start()
        try:
            yield
        finally:
            self._closed.set()

    def collect(self) -> Iterator[Metric]:
        """Yield how often and how long the loop was blocked."""
        yield CounterMetricFamily(
            "event_loop_blocks", "Times that a call blocked the event loop for a second or more.", self.blocks
        )
        yield CounterMetricFamily(
            "event_loop_blocked_seconds", "Seconds that such calls blocked the event loop.", self.blocked_s
        )

    def _watch(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        while not self._closed.wait(self._ask_every_s):
            turned = threading.Event()
            self._asked = asked = time.monotonic()
            try:
                loop.call_soon_threadsafe(turned.set)
            except RuntimeError:  # the loop is closed
                break
            if not turned.wait(self._blocked_after_s):
                self._follow(turned, asked, thread)
            self._asked = None
        self._asked = None

    def _follow(self, turned: threading.Event, asked: float, thread: int) -> None:
        """Log a block with its stack, and count it at its end."""
        late = time.monotonic() - asked > self._blocked_after_s + LATE_S
        if late and turned.wait(LATE_S):
            log.warning("the process did not run for %.1f s: it was suspended", time.monotonic() - asked)
        else:
            log.warning(
                "the event loop is blocked for %.1f s, and so are all calls and heartbeats, by %s",
                time.monotonic() - asked,
                stack_of_thread(thread),
            )
        while not turned.wait(self._ask_every_s):
            if self._closed.is_set():
                return
        seconds = time.monotonic() - asked
        self.blocks += 1
        self.blocked_s += seconds
        self._last = Block(seconds, time.monotonic())
        log.info("the event loop turns again, after %.1f s", seconds)
