"""A worker process: it serves on the port of its supervisor, answers its questions, and ends with it."""

import socket
from collections.abc import MutableMapping
from http import HTTPStatus

from litestar import Litestar
from litestar.datastructures import State

from apps.chassis.background import Background
from apps.chassis.http.health import Fitness, fitness_of
from apps.chassis.http.problems import RETRY_AFTER, problem
from apps.chassis.observability.metric_sums import Families, families_of
from apps.chassis.observability.metrics import metrics_of
from apps.chassis.workers.lifeline import end_with_input
from apps.chassis.workers.link import ANSWER_S, ASK_ALL, Link, NoAnswer, Question

WORKER = "SUPERVISED_WORKER"
"""The variable by which a supervisor gives a process the file descriptors of its two sockets."""
SUPERVISOR_S = 0.5
"""Seconds more than a worker has that the supervisor of all has for an answer."""


class Worker:
    """The part of a supervised process that knows its supervisor."""

    def __init__(self, listening: socket.socket, supervisor: socket.socket) -> None:
        self.listening = listening
        self._link = Link(supervisor, self._answer)
        self._background = Background()
        self._state = State()

    async def ask_all(self, question: str, about: str = "") -> bytes:
        """Return the answer of all workers together, in MessagePack. Raises 503."""
        try:
            return await self._link.ask(question, about, ANSWER_S + SUPERVISOR_S)
        except NoAnswer:
            busy = "the process that started the workers does not answer"
            raise problem(HTTPStatus.SERVICE_UNAVAILABLE, busy, headers={"Retry-After": RETRY_AFTER}) from None

    def join(self, app: Litestar) -> None:
        """Have an application answer for this worker while it runs, and ask all workers when it is asked."""
        self._state = app.state
        app.state[ASK_ALL] = self.ask_all
        app.on_startup.append(lambda: self._background.start(self._link.run(), "link to the supervisor"))

    async def _answer(self, question: str, about: str) -> Fitness | Families | None:
        if question == Question.HEALTH:
            return await fitness_of(self._state, about.split(","))
        return families_of((await metrics_of(self._state)).collect()) if question == Question.METRICS else None


def this_worker(environment: MutableMapping[str, str]) -> Worker | None:
    """Return this process if a supervisor started it, which it then does not outlive; its variable is removed."""
    given = environment.pop(WORKER, None)
    if given is None:
        return None
    end_with_input()
    listening, supervisor = (socket.socket(fileno=int(number)) for number in given.split(","))
    return Worker(listening, supervisor)
