"""Run the consumer with a handler that does what the file STEER says: `work`, `fail`, or `wait` for another word."""

import asyncio
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from apps.chassis.service import serve
from apps.consumer.app import create_app
from contracts.person import PEOPLE, Person


async def handle(_: Sequence[Person]) -> None:
    steer = Path(os.environ["STEER"])
    while (order := steer.read_text()) == "wait":  # noqa: ASYNC110, ASYNC240 - a few bytes, which tell nobody
        await asyncio.sleep(0.02)
    if order == "fail":
        raise RuntimeError("the database is down")


if __name__ == "__main__":
    serve(partial(create_app, handlers={PEOPLE: handle}), lambda settings: settings.consumer_port, "CONSUMER_PORT")
