"""The consumer with a handler that fails for some people, and tells their names when it does; started by a test."""

from collections.abc import Sequence
from functools import partial

from apps.chassis.service import serve
from apps.consumer.app import create_app
from apps.consumer.consuming.retry import Reject
from contracts.person import PEOPLE, Person


class Refused(Reject):
    """Quotes whom it was raised for."""


failed: set[str] = set()


async def handle(people: Sequence[Person]) -> None:
    for person in people:
        if person.age == 150:
            raise Refused(f"{person} is refused")
        if person.age == 149 and person.id not in failed:
            failed.add(person.id)
            raise LookupError(f"{person.name} with the key {person.id} is unknown for now")


if __name__ == "__main__":
    serve(partial(create_app, handlers={PEOPLE: handle}), lambda settings: settings.consumer_port, "CONSUMER_PORT")
