"""Makes up values of a stream: realistic ones where it has a generator of its own, otherwise any of its type."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any, TypeVar, get_args

from contracts.person import PEOPLE
from contracts.stream import Stream

T = TypeVar("T")

Generate = Callable[[int], Awaitable[Sequence[T]]]
"""Returns so many made-up values."""


@cache
def generator_of(stream: Stream[T]) -> Generate[T]:
    """Return what makes up values of a stream. Blocks for a second while it imports what it needs.

    polyfactory and Faker take a sixth of the time that all imports take, and 9 MB of memory (50 where no bytecode is
    kept): a producer that only passes values on does without them.
    """
    if stream is PEOPLE:
        return _people_generator()
    make = _factory_batches(stream)

    async def generate(number: int) -> Sequence[T]:
        return await asyncio.to_thread(make, number)  # some 6,000 a second: the event loop turns meanwhile

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
            """Return the fields; polyfactory itself looks at them again for each value, half of its time."""
            return super().get_model_fields()

    kinds: Any = get_args(stream.record_type) or (stream.record_type,)
    factories = [Factory.create_factory(kind) for kind in kinds]

    def generate(number: int) -> list[T]:
        return [factories[index % len(factories)].build() for index in range(number)]

    return generate
