"""Liveness and health over HTTP: `/livez` says that the process answers, `/health-check` that it can do its job."""

from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Literal

import msgspec
from litestar import get
from litestar.handlers import BaseRouteHandler
from litestar.openapi import ResponseSpec
from litestar.response import Response

from apps.chassis.problems import documented

VERSION = version("people-over-kafka")


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


def health_routes(service: str, examine: Callable[[], Awaitable[tuple[bool, str, str]]]) -> Sequence[BaseRouteHandler]:
    """Return the routes; `examine` tells whether the service can do its job, the state of Kafka and the detail."""

    @get(
        "/health-check",
        summary="Can the service do its job?",
        responses={
            **documented(),
            503: ResponseSpec(Health, generate_examples=False, description="It cannot; `detail` says why"),
        },
    )
    async def health_check() -> Response[Health]:
        fit, kafka, detail = await examine()
        health = Health("ok" if fit else "unavailable", service, VERSION, kafka, detail)
        return Response(health, status_code=HTTPStatus.OK if fit else HTTPStatus.SERVICE_UNAVAILABLE)

    @get("/livez", summary="Does the process answer?", responses=documented(), sync_to_thread=False)
    def livez() -> Alive:
        return Alive()

    return health_check, livez
