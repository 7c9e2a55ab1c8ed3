"""Generate values of a stream: with its own generator if it has one, otherwise any values of its type."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, time, timedelta
from functools import cache
from itertools import count
from threading import Event, Lock
from time import monotonic
from typing import Any, TypeVar, get_args

from contracts.person import PEOPLE
from contracts.stream import Stream, encode

T = TypeVar("T")

Generate = Callable[[int, int, asyncio.Semaphore], AsyncGenerator[Sequence[T], None]]
"""Yield so many generated values, up to so many at a time, perhaps after waiting for a turn.

Raises `CannotGenerate`, or `TimeoutError` without a turn.
"""
TURN_S = 2.0
"""Seconds that a call waits for its turn to generate: accepted calls can be finished."""
AT_A_TIME_S = 0.25
"""Seconds of generating without a break, in which no other call has a value generated."""
STOCK_RECORDS = 250
"""People generated in advance for calls that want fewer: a third of a millisecond in which nothing else runs."""
MAX_ATTEMPTS = 100
"""Values generated in vain, one after the other, before a stream counts as one without a generator."""

_BUILT: dict[Stream[Any], Generate[Any]] = {}
_IN_STOCK: dict[Stream[Any], list[Any]] = {}
_BUILDING = Lock()
"""Held while a generator is built: each stream has one thread, also when many first calls arrive together."""


class CannotGenerate(Exception):
    """No valid value of a stream can be generated; the message says why."""


async def generator_of(stream: Stream[T]) -> Generate[T]:
    """Return the generator of a stream's values. The first call imports polyfactory and Faker in a thread.

    They take a sixth of all import time and 9 MB of memory (50 MB without compiled bytecode). A producer that generates
    nothing does not need them.
    """
    if stream not in _BUILT:
        await asyncio.to_thread(_build_once, stream)
    return _BUILT[stream]


def _build_once(stream: Stream[Any]) -> None:
    with _BUILDING:
        if stream not in _BUILT:
            _BUILT[stream] = _build(stream)


def _build(stream: Stream[T]) -> Generate[T]:
    if stream is PEOPLE:
        return _people_generator()
    make = _value_factory(stream)
    # about 6,000 a second: it would block the event loop, and in more than one thread hold up all other calls
    thread = ThreadPoolExecutor(1, f"generate {stream.name}")

    async def generate(number: int, at_a_time: int, turns: asyncio.Semaphore) -> AsyncGenerator[Sequence[T], None]:
        async with asyncio.timeout(TURN_S):
            await turns.acquire()
        given_up = Event()
        try:
            while number:
                wanted = min(number, at_a_time)
                made = await asyncio.get_running_loop().run_in_executor(thread, make, wanted, given_up)
                number -= len(made)
                yield made
        finally:
            given_up.set()
            turns.release()

    return generate


def _people_generator() -> Generate[Any]:
    from apps.producer.generating.people import PersonFactory  # noqa: PLC0415 - see `generator_of`

    async def generate(number: int, at_a_time: int, _: asyncio.Semaphore) -> AsyncGenerator[Sequence[Any], None]:
        if number < STOCK_RECORDS:  # drawing one person alone takes fifty times as long
            _IN_STOCK[PEOPLE] = PersonFactory.batch(STOCK_RECORDS)
        for start in range(0, number, at_a_time):
            wanted = min(at_a_time, number - start)
            yield take_from_stock(PEOPLE, wanted) or PersonFactory.batch(wanted)

    return generate


def take_from_stock(stream: Stream[T], number: int) -> Sequence[T]:
    """Return values that were generated in advance, each once; none when there are not so many."""
    stock: list[T] = _IN_STOCK.get(stream, [])
    if len(stock) < number:
        return []
    taken = stock[-number:]
    del stock[-number:]
    return taken


def _value_factory(stream: Stream[T]) -> Callable[[int, Event], list[T]]:
    kinds: Any = get_args(stream.record_type) or (stream.record_type,)
    base, numbers = _base_factory(), count()
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
        made, until = list[T](), monotonic() + AT_A_TIME_S
        while len(made) < number and not given_up.is_set() and (not made or monotonic() < until):
            made.append(build(factories[next(numbers) % len(factories)]))
        return made

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
