"""The supervisor: starts the workers of a service, answers for all of them, and ends them."""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from contextlib import suppress

import msgspec

from apps.chassis.http.health import Fitness, overall
from apps.chassis.observability.metric_sums import Families, counters_of, summed
from apps.chassis.workers.link import Link, NoAnswer, Question
from apps.chassis.workers.worker import WORKER

log = logging.getLogger(__name__)

ENDS, ENDS_WITHIN_S = 3, 60.0
"""Workers that may end by themselves within so many seconds; with one more, the whole service ends."""
KILLED_AFTER_S = 9.7
"""Seconds from a signal after which workers are killed: they need 9.5 at most."""
LINGERS_S = 1.0
"""Seconds for a worker to end whose link has closed; one that stays cannot answer for the others, and is ended."""
ASK_EVERY_S = 5.0
"""Seconds between two questions whether a worker's event loop turns."""
HEALTHY = "service_healthy"
"""The metric that is 0 while a worker does not answer."""
ENDED_WELL = frozenset({0, -signal.SIGTERM})
"""Statuses of a worker that was told to end, perhaps before it served."""


class WorkerProcess:
    """A worker, which may be started several times, and what is known of it."""

    def __init__(self, number: int, supervisor: "Supervisor") -> None:
        self.name = f"worker {number}"
        self._supervisor = supervisor
        self._process: Process | None = None
        self._link: Link | None = None
        self._asked_at: float | None = None
        self._has_answered = False
        self._known: Families = {}
        self._ended: Families = {}

    @property
    def without_turn_s(self) -> float:
        """The seconds for which its event loop has not answered; 0 when it has."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else time.monotonic() - asked_at

    async def run(self, listening: socket.socket) -> int:
        """Run it once, with the command of this process; return its exit status."""
        ours, theirs = socket.socketpair()
        files = listening.fileno(), theirs.fileno()
        with theirs:
            self._process = process = await asyncio.create_subprocess_exec(
                *(sys.executable, *sys.orig_argv[1:]),
                stdin=PIPE,  # it ends with this end of it, that is with this process
                env={**os.environ, WORKER: ",".join(map(str, files))},
                pass_fds=files,
                start_new_session=True,  # Ctrl-C and the end of a terminal are for the supervisor
            )
        if self._supervisor.ending.is_set():  # it was told so while the worker was being started
            self.send_signal(signal.SIGTERM)
        self._link = Link(ours, self._supervisor.answer)
        asking = asyncio.create_task(self._ask_for_turns(self._link))
        await self._link.run()
        asking.cancel()
        status = await self._ended_status(process)
        self._process = self._link = self._asked_at = None
        self._has_answered = False
        self._ended, self._known = summed([self._ended, counters_of(self._known)]), {}
        return status

    async def _ended_status(self, process: Process) -> int:
        """Return the exit status of a worker whose link has closed; end it if it stays."""
        for number, within_s in ((signal.SIGTERM, LINGERS_S), (signal.SIGKILL, KILLED_AFTER_S)):
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    return await process.wait()
            log.error("%s has lost its link, and is ended by %s", self.name, signal.Signals(number).name)
            self.send_signal(number)
        return await process.wait()

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def fitness(self, streams: str) -> Fitness:
        """Return whether it can serve streams now."""
        try:
            answer = await self._ask(Question.HEALTH, streams)
        except NoAnswer:
            return Fitness(
                fit=False, kafka="unknown", detail="does not answer" if self._has_answered else "is starting"
            )
        return msgspec.msgpack.decode(answer, type=Fitness)

    async def metrics(self) -> tuple[Families, bool]:
        """Return its metrics, and whether it answered: otherwise its counters as they are known, which never fall."""
        try:
            answer = await self._ask(Question.METRICS)
        except NoAnswer:
            return summed([self._ended, counters_of(self._known)]), False
        self._known = msgspec.msgpack.decode(answer, type=Families)
        return summed([self._ended, self._known]), True

    async def _ask(self, question: str, about: str = "") -> bytes:
        if self._link is None:
            raise NoAnswer
        answer = await self._link.ask(question, about)
        self._has_answered = True
        return answer

    async def _ask_for_turns(self, link: Link) -> None:
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            with suppress(NoAnswer):
                self._asked_at = self._asked_at or time.monotonic()
                await link.ask(Question.TURN)
                self._asked_at = None


class Supervisor:
    """Runs workers until a signal, or until they end by themselves too often.

    `ending` is set when the shutdown begins. Workers get SIGTERM for every signal: SIGINT makes a Python that is still
    starting exit with status 1.
    """

    def __init__(self, workers: int, listening: socket.socket) -> None:
        self._workers = [WorkerProcess(number, self) for number in range(1, workers + 1)]
        self._listening = listening
        self._ends: deque[float] = deque(maxlen=ENDS + 1)
        self.ending = asyncio.Event()
        self._status = 0

    @property
    def without_turn_s(self) -> float:
        """The seconds for which the event loop of a worker has not answered, of the worst one."""
        return max(worker.without_turn_s for worker in self._workers)

    async def run(self) -> int:
        """Run the workers until SIGTERM, SIGINT or SIGHUP, and end them within 10 s; return the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has it
                loop.add_signal_handler(number, self._end)
        running = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
        await self.ending.wait()
        self._listening.close()
        _, left = await asyncio.wait(running, timeout=KILLED_AFTER_S)
        for worker in self._workers if left else ():
            worker.send_signal(signal.SIGKILL)
        await asyncio.gather(*running)
        return self._status

    async def answer(self, question: str, streams: str) -> Fitness | Families:
        """Answer a worker's question about all workers."""
        if question == Question.HEALTH:
            found = await asyncio.gather(*(worker.fitness(streams) for worker in self._workers))
            by_name = {worker.name: one for worker, one in zip(self._workers, found, strict=True)}
            return found[0] if len(set(found)) == 1 else overall(by_name)
        known = await asyncio.gather(*(worker.metrics() for worker in self._workers))
        total = summed(families for families, _ in known)
        healthy = total.get(HEALTHY)
        if healthy and not all(has_answered for _, has_answered in known):
            healthy.samples = [(name, labels, 0.0) for name, labels, _ in healthy.samples]
        return total

    async def _keep(self, worker: WorkerProcess) -> None:
        """Run a worker, and start it again when it ends by itself."""
        while not self.ending.is_set():
            try:
                status = await worker.run(self._listening)
            except OSError as error:
                if self.ending.is_set():  # the socket is closed already
                    return
                log.error("%s cannot be started: %s", worker.name, error.strerror)  # noqa: TRY400 - one line says it
                status = 1
            if self.ending.is_set():
                self._status = self._status or int(status not in ENDED_WELL)
                return
            self._ends.append(time.monotonic())
            if len(self._ends) > ENDS and self._ends[-1] - self._ends[0] < ENDS_WITHIN_S:
                log.critical(
                    "%s ended with status %d, the fourth within a minute: the service ends", worker.name, status
                )
                self._status = 1
                self._end()
            else:
                log.error("%s ended with status %d, and is started again", worker.name, status)

    def _end(self) -> None:
        self.ending.set()
        for worker in self._workers:
            worker.send_signal(signal.SIGTERM)
