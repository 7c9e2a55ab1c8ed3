"""The consumer with a handler that notes whom it handled, fails now and then, and refuses who lives in Nowhere."""

import os
import random
from collections.abc import Sequence
from functools import partial

from apps.chassis.serve import serve
from apps.consumer.app import create_app
from apps.consumer.attempts import Reject
from contracts.person import Person

NOWHERE = "Nowhere"
FAILING = 0.03
"""Share of calls that fail; ten in a row, which would dead-letter good people, do not happen."""


async def handle(people: Sequence[Person], *, ledger: int) -> None:
    if random.random() < FAILING:
        raise ConnectionError("fails now and then")
    if any(person.city == NOWHERE for person in people):
        raise Reject("nobody lives there")
    os.write(ledger, "".join(f"{person.name}\n" for person in people).encode())


if __name__ == "__main__":
    opened = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    noting = partial(handle, ledger=opened)
    serve(partial(create_app, handle=noting), lambda settings: settings.consumer_port, "CONSUMER_PORT")
