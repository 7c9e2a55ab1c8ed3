"""A person: the value of every record on the topic, as UTF-8 JSON."""

from typing import Annotated

import msgspec
from msgspec import Meta

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
    """A person, as it stands on the topic. Every field is required; a reader ignores fields that it does not know."""

    id: Id
    name: Annotated[str, Meta(examples=["Ada Lovelace"])]
    age: Age
    email: Annotated[str, Meta(examples=["ada.lovelace@example.com"])]
    phone: Annotated[str, Meta(examples=["+1-202-555-0143"])]
    address: Annotated[str, Meta(examples=["12 St James Square"])]
    city: Annotated[str, Meta(examples=["London"])]
    state: Annotated[str, Meta(examples=["NY"])]
    zip: Annotated[str, Meta(examples=["10001"])]
    country: Annotated[str, Meta(examples=["United States"])]


class StrictPerson(Person, frozen=True, gc=False, forbid_unknown_fields=True):
    """A person as a producer accepts it: a field that `Person` does not have is refused."""


def key_of(person: Person) -> bytes:
    """Return the record's key: the person's id in UTF-8."""
    return person.id.encode()


encode = msgspec.json.Encoder().encode
"""Encode a person (or a list of them) as UTF-8 JSON, fields in the order of the Struct."""

decode = msgspec.json.Decoder(Person).decode
"""Decode a record's value. Raises `msgspec.DecodeError` (`msgspec.ValidationError` names the JSON path) or, for strings
that are not UTF-8, `UnicodeDecodeError`. Types are not converted: `"36"` is no age."""

decode_strictly = msgspec.json.Decoder(StrictPerson).decode
"""Decode one person of a producer's caller. Raises as `decode` does, and for unknown fields."""

decode_all_strictly = msgspec.json.Decoder(list[StrictPerson]).decode
"""Decode a list of people of a producer's caller. Raises as `decode_strictly` does, with the index in the path."""
