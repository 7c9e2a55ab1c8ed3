"""The stream that the tests carry, so that they hold for any message of the services: `contracts` declares that."""

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.stream import Stream


class Event(msgspec.Struct, frozen=True, gc=False):
    """A small record; every field is required."""

    id: Annotated[str, Meta(min_length=1, max_length=64, description="The record's key.", examples=["event-1"])]
    number: Annotated[int, Meta(ge=0, le=150, examples=[36])]
    text: Annotated[str, Meta(examples=["It rains."])]


EVENTS = Stream("events", Event, key=lambda event: event.id, summary=lambda event: f"{event.text}, {event.number}")
