"""Run the consumer with a handler that refuses people of 150 years while the file REFUSING exists.

It adds the id of each person that it handled to the file LEDGER.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from apps.chassis.service import serve
from apps.consumer.app import create_app
from apps.consumer.consuming.retry import Reject
from contracts.person import PEOPLE, Person


async def handle(people: Sequence[Person]) -> None:
    if Path(os.environ["REFUSING"]).exists() and any(person.age == 150 for person in people):  # noqa: ASYNC240 - takes microseconds
        raise Reject("nobody is 150 years old")
    with Path(os.environ["LEDGER"]).open("a", encoding="utf-8") as ledger:  # noqa: ASYNC230 - as above
        ledger.writelines(f"{person.id}\n" for person in people)


if __name__ == "__main__":
    serve(partial(create_app, handlers={PEOPLE: handle}), lambda settings: settings.consumer_port, "CONSUMER_PORT")
