"""A bare Litestar handler that decodes a person and returns: what HTTP alone costs."""

from litestar import Litestar, get, post

from contracts.person import Person


@post("/producers/people")
async def people(data: Person) -> None:
    """Take a person."""


@get("/health-check")
async def health_check() -> None:
    """Answer."""


app = Litestar([people, health_check], openapi_config=None)
