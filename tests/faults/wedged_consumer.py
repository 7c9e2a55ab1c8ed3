"""The consumer, whose client can be broken from within: by a person named after what is to be broken."""

import asyncio
from collections.abc import Sequence
from functools import partial

from apps.chassis.service import serve
from apps.consumer.app import create_app
from contracts.person import PEOPLE, Person


async def handle(people: Sequence[Person]) -> None:
    for person in people:
        for task in asyncio.all_tasks():
            coroutine = task.get_coro()
            if person.name == getattr(coroutine, "__qualname__", ""):
                task.cancel()


if __name__ == "__main__":
    serve(partial(create_app, handlers={PEOPLE: handle}), lambda settings: settings.consumer_port, "CONSUMER_PORT")
