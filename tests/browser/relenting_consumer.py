"""The consumer with a handler that refuses whoever is 150 years old, as long as a file is there; started by a test."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from apps.chassis.service import serve
from apps.consumer.app import create_app
from apps.consumer.consuming.retry import Reject
from contracts.person import PEOPLE, Person


async def handle(people: Sequence[Person]) -> None:
    if any(person.age == 150 for person in people) and Path(os.environ["REFUSED_WHILE"]).exists():  # noqa: ASYNC240 - takes microseconds
        raise Reject("nobody is 150 years old")


if __name__ == "__main__":
    serve(partial(create_app, handlers={PEOPLE: handle}), lambda settings: settings.consumer_port, "CONSUMER_PORT")
