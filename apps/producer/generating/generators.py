"""Generate values of a stream: with its own generator if it has one, otherwise any values of its type."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any, TypeVar, get_args

from contracts.person import PEOPLE
from contracts.stream import Stream

T = TypeVar("T")

Generate = Callable[[int], Awaitable[Sequence[T]]]
"""Return this many generated values."""


@cache
def generator_of(stream: Stream[T]) -> Generate[T]:
    """Return the generator of a stream's values. Blocks for up to a second while it imports polyfactory and Faker.

    They take a sixth of all import time and 9 MB of memory (50 MB without compiled bytecode). A producer that generates
    nothing does not need them.
    """
    if stream is PEOPLE:
        return _people_generator()
    make = _factory_batches(stream)

    async def generate(number: int) -> Sequence[T]:
        return await asyncio.to_thread(make, number)  # about 6,000 a second: it would block the event loop

    return generate


def _people_generator() -> Generate[Any]:
    from apps.producer.generating.people import PersonFactory  # noqa: PLC0415 - see `generator_of`

    async def generate(number: int) -> Sequence[Any]:
        return PersonFactory.batch(number)

    return generate


def _factory_batches(stream: Stream[T]) -> Callable[[int], list[T]]:
    from polyfactory.factories.msgspec_factory import MsgspecFactory  # noqa: PLC0415 - see `generator_of`

    class Factory(MsgspecFactory[Any]):
        __is_base_factory__ = True

        @classmethod
        @cache
        def get_model_fields(cls) -> list[Any]:
            """Return the fields. Cached, because polyfactory spends half of its time on them for every value."""
            return super().get_model_fields()

    kinds: Any = get_args(stream.record_type) or (stream.record_type,)
    factories = [Factory.create_factory(kind) for kind in kinds]

    def generate(number: int) -> list[T]:
        return [factories[index % len(factories)].build() for index in range(number)]

    return generate
