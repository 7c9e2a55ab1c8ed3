"""Liveness and health over HTTP: `/livez` says that the process answers, `/health-check` that it can do its job."""

import asyncio
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Literal, NamedTuple, Protocol

import msgspec
from litestar import get
from litestar.handlers import BaseRouteHandler
from litestar.openapi import ResponseSpec
from litestar.response import Response

from apps.chassis.http.problems import documented
from apps.chassis.http.served_streams import Served, SomeStreams
from contracts import PROJECT

VERSION = version(PROJECT)


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
    told = unfit or by_stream
    details = [one.detail if len(by_stream) == 1 else f"{name}: {one.detail}" for name, one in told.items()]
    kafka = next((one.kafka for one in by_stream.values() if one.kafka != "connected"), "connected")
    return Fitness(not unfit, kafka, "; ".join(details))


def health_routes(service: str, served: Served[Examined]) -> Sequence[BaseRouteHandler]:
    """Return the routes of a service that serves some streams."""

    @get(
        "/health-check",
        summary="Can the service do its job?",
        responses={
            **documented(),
            503: ResponseSpec(Health, generate_examples=False, description="It cannot; `detail` says why"),
        },
    )
    async def health_check(stream: SomeStreams = None) -> Response[Health]:
        examined = served.some(stream)
        found = await asyncio.gather(*(one.health() for one in examined.values()))
        fit, kafka, detail = overall(dict(zip(examined, found, strict=True)))
        health = Health("ok" if fit else "unavailable", service, VERSION, kafka, detail)
        return Response(health, status_code=HTTPStatus.OK if fit else HTTPStatus.SERVICE_UNAVAILABLE)

    @get("/livez", summary="Does the process answer?", responses=documented(), sync_to_thread=False)
    def livez() -> Alive:
        return Alive()

    return health_check, livez
