"""Liveness and health over HTTP: `/livez` says that the process answers, `/health-check` that it can do its job."""

import asyncio
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
from litestar import Controller, get
from litestar.connection import Request
from litestar.datastructures import State
from litestar.openapi import ResponseSpec
from litestar.params import SkipValidation
from litestar.response import Response

from apps.chassis.audit import AUDIT
from apps.chassis.http.authorization import ACCESS, access_of
from apps.chassis.http.problems import documented
from apps.chassis.http.roles import ANYONE, ROLE
from apps.chassis.loop_watch import LOOP_WATCH
from apps.chassis.workers.link import ASK_ALL, Question
from contracts import PROJECT

VERSION = version(PROJECT)
WITHOUT_DETAILS = "details need a key with the role read"
SERVICE = "service"
"""The key of an application's state that holds the name of the service."""
PARTS = "parts"
"""The key of an application's state that holds the parts of the service by their streams' names."""


class Health(msgspec.Struct):
    """Whether a service can do its job now, and in one sentence why not."""

    status: Literal["ok", "unavailable"]
    service: str
    version: str
    kafka: str
    detail: str


class Alive(msgspec.Struct):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Fitness(NamedTuple):
    """Whether a stream can be served now, the state of Kafka, and in one sentence why not."""

    fit: bool
    kafka: str
    detail: str


class Examined(Protocol):
    """The part of a service that serves one stream."""

    async def health(self) -> Fitness:
        """Return whether the stream can be served now."""


def overall(by_stream: Mapping[str, Fitness]) -> Fitness:
    """Return the fitness of a service: only a service that can serve all of its streams is fit."""
    unfit = {name: one for name, one in by_stream.items() if not one.fit}
    details = [
        one.detail if len(by_stream) == 1 else f"{name}: {one.detail}" for name, one in (unfit or by_stream).items()
    ]
    kafka = next((one.kafka for one in by_stream.values() if one.kafka != "connected"), "connected")
    return Fitness(not unfit, kafka, "; ".join(details))


async def fitness_of(state: State, streams: Iterable[str]) -> Fitness:
    """Return the fitness of this process for streams, by name, with what else an operator should know of it."""
    parts = {name: state[PARTS][name] for name in streams}
    found = await asyncio.gather(*(one.health() for one in parts.values()))
    fit, kafka, detail = overall(dict(zip(parts, found, strict=True)))
    notes = [detail, state[LOOP_WATCH].recent_block(), state[ACCESS].authenticator.note, state[AUDIT].trouble]
    return Fitness(fit, kafka, "; ".join(filter(None, notes)))


class HealthController(Controller):
    """The two calls of probes; they are answered under any load."""

    opt = {"unlimited": True, ROLE: ANYONE}  # noqa: RUF012 - Litestar's own attribute

    @get(
        "/health-check",
        summary="Can the service do its job?",
        responses={
            **documented(),
            503: ResponseSpec(Health, generate_examples=False, description="It cannot; `detail` says why"),
        },
    )
    async def health_check(
        self,
        request: Request[Any, Any, Any],
        served_streams: SkipValidation[Mapping[str, Examined]],
    ) -> Response[Health]:
        """Return the health of the service, or of one stream."""
        state, ask_all = request.app.state, request.app.state.get(ASK_ALL)
        if ask_all:
            answer = await ask_all(Question.HEALTH, ",".join(served_streams))
            fit, kafka, detail = msgspec.msgpack.decode(answer, type=Fitness)
        else:
            fit, kafka, detail = await fitness_of(state, served_streams)
        detail = detail if access_of(request).may_read(request) else WITHOUT_DETAILS
        health = Health("ok" if fit else "unavailable", state[SERVICE], VERSION, kafka, detail)
        return Response(health, status_code=HTTPStatus.OK if fit else HTTPStatus.SERVICE_UNAVAILABLE)

    @get("/livez", summary="Does the process answer?", responses=documented(), sync_to_thread=False)
    def livez(self) -> Alive:
        """Return that the process answers."""
        return Alive()
