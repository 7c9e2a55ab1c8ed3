"""Generate values of a stream: with its own generator if it has one, otherwise any values of its type."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, time, timedelta
from functools import cache
from itertools import takewhile
from threading import Event, Lock
from typing import Any, TypeVar, get_args

from contracts.person import PEOPLE
from contracts.stream import Stream, encode

T = TypeVar("T")

Generate = Callable[[int], Awaitable[Sequence[T]]]
"""Return this many generated values. Raises `CannotGenerate`."""
MAX_ATTEMPTS = 100
"""Values generated in vain, one after the other, before a stream counts as one without a generator."""

_BUILDING = Lock()
"""Held while a generator is built: each stream has one thread, also when many first calls arrive together."""


class CannotGenerate(Exception):
    """No valid value of a stream can be generated; the message says why."""


def generator_of(stream: Stream[T]) -> Generate[T]:
    """Return the generator of a stream's values. Blocks for up to a second while it imports polyfactory and Faker.

    They take a sixth of all import time and 9 MB of memory (50 MB without compiled bytecode). A producer that generates
    nothing does not need them.
    """
    with _BUILDING:
        return _generator_of(stream)


@cache
def _generator_of(stream: Stream[T]) -> Generate[T]:
    if stream is PEOPLE:
        return _people_generator()
    make = _value_factory(stream)
    # about 6,000 a second: it would block the event loop, and in more than one thread hold up all other calls
    thread = ThreadPoolExecutor(1, f"generate {stream.name}")

    async def generate(number: int) -> Sequence[T]:
        given_up = Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, make, number, given_up)
        finally:
            given_up.set()

    return generate


def _people_generator() -> Generate[Any]:
    from apps.producer.generating.people import PersonFactory  # noqa: PLC0415 - see `generator_of`

    async def generate(number: int) -> Sequence[Any]:
        return PersonFactory.batch(number)

    return generate


def _value_factory(stream: Stream[T]) -> Callable[[int, Event], list[T]]:
    kinds: Any = get_args(stream.record_type) or (stream.record_type,)
    base = _base_factory()
    factories = [base.create_factory(kind) for kind in kinds]

    def build(factory: Any) -> T:  # noqa: ANN401 - a class that is imported late
        fault: Exception | None = None
        for _ in range(MAX_ATTEMPTS):
            try:
                value: T = factory.build()
                stream.keys_of([stream.decode_strictly(encode(value))])
            except Exception as error:  # noqa: BLE001 - the `__post_init__` of a Struct may raise anything
                fault = error
            else:
                return value
        raise CannotGenerate(f"no valid {stream.name} can be generated: {fault}")

    def generate(number: int, given_up: Event) -> list[T]:
        wanted = takewhile(lambda _: not given_up.is_set(), range(number))
        return [build(factories[index % len(factories)]) for index in wanted]

    return generate


def _base_factory() -> Any:  # noqa: ANN401 - likewise
    """Return polyfactory's factory, faster and with times as msgspec wants them."""
    from polyfactory.factories.msgspec_factory import MsgspecFactory  # noqa: PLC0415 - see `generator_of`

    class Factory(MsgspecFactory[Any]):
        __is_base_factory__ = True

        @classmethod
        @cache
        def get_model_fields(cls) -> list[Any]:
            """Return the fields. Cached, because polyfactory spends half of its time on them for every value."""
            return super().get_model_fields()

        @classmethod
        def get_constrained_field_value(cls, annotation: Any, field_meta: Any, *more: Any, **options: Any) -> Any:  # noqa: ANN401 - polyfactory's signature
            """Return a value; of a time with or without a zone, for which polyfactory has a date or nothing."""
            if annotation not in {datetime, time}:
                return super().get_constrained_field_value(annotation, field_meta, *more, **options)
            zone = UTC if field_meta.constraints.get("tz") else None
            moment = datetime.now(zone) - timedelta(seconds=cls.__random__.randrange(365 * 24 * 60 * 60))
            return moment if annotation is datetime else moment.timetz()

    return Factory
