"""The stream of people: each record is a person, as UTF-8 JSON."""

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.sensitive import Sensitive
from contracts.stream import Stream

Id = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        description="Identifies the person; its UTF-8 bytes are the record's key.",
        examples=["0b0d5c4e-6b3f-4a55-9a43-0c8f5d1c7f11"],
    ),
]
Age = Annotated[int, Meta(ge=0, le=150, description="Years.", examples=[36])]


class Person(msgspec.Struct, frozen=True, gc=False):
    """A person. Every field is required; a consumer ignores fields that it does not know."""

    id: Id
    name: Annotated[str, Meta(examples=["Ada Lovelace"])]
    age: Age
    email: Annotated[str, Meta(examples=["ada.lovelace@example.com"]), Sensitive()]
    phone: Annotated[str, Meta(examples=["+1-202-555-0143"]), Sensitive()]
    address: Annotated[str, Meta(examples=["12 St James Square"]), Sensitive()]
    city: Annotated[str, Meta(examples=["London"])]
    state: Annotated[str, Meta(examples=["NY"])]
    zip: Annotated[str, Meta(examples=["10001"])]
    country: Annotated[str, Meta(examples=["United States"])]


def _id_of(person: Person) -> str:
    return person.id


def _summary_of(person: Person) -> str:
    return f"{person.name}, {person.age}, {person.city}"


PEOPLE = Stream(
    "people",
    Person,
    key=_id_of,
    summary=_summary_of,
    variables={"dead_letter_topic": "DEAD_LETTER_TOPIC", "group_id": "CONSUMER_GROUP_ID"},
)
