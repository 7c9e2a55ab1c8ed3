"""Make a batch handler of a function for one record: keys keep their order, different keys are handled at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial, wraps
from typing import TypeVar

from apps.consumer.consuming.batch import KEPT_BASES, Batch, Received, Reject
from apps.consumer.consuming.containment import HandlerCall
from apps.consumer.consuming.handler_thread import is_asynchronous

T = TypeVar("T")
HandleOne = Callable[[T, Received[T]], Awaitable[None]]


def each(*, concurrency: int = 100) -> Callable[[HandleOne[T]], Callable[[Batch[T]], Awaitable[None]]]:
    """Return a decorator that makes a batch handler of an asynchronous function for one record.

    Records of one partition and key are handled one after the other. Others are handled at once, at most `concurrency`
    of them. What the function raises, or returns instead of None, is the failure of its record alone; later records of
    that key are handled after it. The decorator raises `TypeError` for a plain function, which would block.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency: expected at least 1, got {concurrency}")

    def decorate(handle: HandleOne[T]) -> Callable[[Batch[T]], Awaitable[None]]:
        if not is_asynchronous(handle):
            raise TypeError(f"@each: expected an `async def`, got {handle!r}: it would block; let it take a Batch")

        @wraps(handle)
        async def handle_batch(batch: Batch[T]) -> None:
            chains = _chains_of(batch)
            waiting = iter(chains)
            async with asyncio.TaskGroup() as group:
                workers = [
                    group.create_task(_handle_chains(handle, batch, waiting))
                    for _ in range(min(concurrency, len(chains)))
                ]
            if any(worker.cancelled() for worker in workers):
                raise asyncio.CancelledError  # by somebody else: records were left out

        return handle_batch

    return decorate


def _chains_of(batch: Batch[T]) -> Sequence[Sequence[Received[T]]]:
    """Return the records of each key, in their order; a record without a key is alone."""
    chains: dict[object, list[Received[T]]] = {}
    for record in batch:
        key = record.key
        chains.setdefault(record.index if key is None else (record.partition, key), []).append(record)
    return list(chains.values())


async def _handle_chains(handle: HandleOne[T], batch: Batch[T], chains: Iterator[Sequence[Received[T]]]) -> None:
    call = HandlerCall(*KEPT_BASES)
    for chain in chains:
        for record in chain:
            if error := await call.run(partial(handle, record.value, record)):
                batch.fail(record, error)
                if not isinstance(error, Reject):
                    break  # later ones of its key wait for it
