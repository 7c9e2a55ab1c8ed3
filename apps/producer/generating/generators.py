"""Makes up values of a stream: realistic ones where it has a generator of its own, otherwise any of its type."""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, get_args

from contracts.person import PEOPLE
from contracts.stream import Stream

T = TypeVar("T")

Generate = Callable[[int], list[T]]
"""Returns so many made-up values."""


@cache
def generator_of(stream: Stream[T]) -> Generate[T]:
    """Return what makes up values of a stream. Blocks for a second while it imports what it needs.

    polyfactory and Faker take a sixth of the time that all imports take, and 9 MB of memory (50 where no bytecode is
    kept): a producer that only passes values on does without them.
    """
    if stream is PEOPLE:
        from apps.producer.generating.people import PersonFactory  # noqa: PLC0415 - see above

        return PersonFactory.batch  # type: ignore[return-value]  # a stream of people
    return _any_values_of(stream)


def _any_values_of(stream: Stream[T]) -> Generate[T]:
    from polyfactory.factories.msgspec_factory import MsgspecFactory  # noqa: PLC0415 - see `generator_of`

    kinds: Any = get_args(stream.record_type) or (stream.record_type,)
    factories = [MsgspecFactory.create_factory(kind) for kind in kinds]

    def generate(number: int) -> list[T]:
        return [factories[index % len(factories)].build() for index in range(number)]

    return generate
