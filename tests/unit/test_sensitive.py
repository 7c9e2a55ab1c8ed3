"""What is masked of a value, by where its type is marked."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from apps.chassis.settings import Settings
from apps.consumer.app import create_app as create_consumer
from contracts.sensitive import Sensitive, masked
from contracts.stream import BadStream, Stream

Secret = Annotated[str, Sensitive()]


class Address(msgspec.Struct, rename="camel"):
    street_name: Secret
    city: str = "London"


MASKED_ADDRESSES = {"a": [{"streetName": "…", "city": "London"}, None]}


class Cat(msgspec.Struct, tag="cat"):
    chip: Secret


class Dog(msgspec.Struct, tag="dog"):
    name: str


class Pair(msgspec.Struct, array_like=True):
    name: str
    phone: Secret


@pytest.mark.parametrize(
    ("kind", "given", "shown"),
    [
        (Secret, "12 Main St", "…"),
        (Secret, "", "…"),
        (Secret, "ada@example.com", "a…@example.com"),
        (Secret, "a@example.com", "a…@example.com"),
        (Secret, "Ada <ada@example.com>", "…"),
        (Secret, "ada@example.com\n", "…"),
        (Secret, "ada@home", "…"),
        (Secret | None, None, None),
        (Secret | None, "ada", "…"),
        (Annotated[str | None, Sensitive()], "ada", "…"),
        (Annotated[int, Meta(ge=0), Sensitive()], 7, "…"),
        (Annotated[bool, Sensitive()], True, "…"),
        (int | Secret, "ada", "…"),
        (list[Secret], ["ada", "bob"], ["…", "…"]),
        (tuple[int, Secret], [1, "ada"], [1, "…"]),
        (tuple[Secret, ...], ["ada"], ["…"]),
        (set[Secret], ["ada"], ["…"]),
        (dict[str, Secret], {"a": "ada"}, {"a": "…"}),
        (dict[Secret, str], {"a": "ada"}, "…"),
        (dict[str, list[Address | None]], {"a": [{"streetName": "x"}, None]}, MASKED_ADDRESSES),
        (Annotated[Address, Sensitive()], {"streetName": "x"}, "…"),
        (Annotated[list[str], Sensitive()], ["a", "b"], "…"),
        (Cat | Dog, {"type": "cat", "chip": "7"}, {"type": "cat", "chip": "…"}),
        (Cat | Dog | None, {"type": "dog", "name": "Rex"}, {"type": "dog", "name": "Rex"}),
        (Pair, ["Bob", "7"], ["Bob", "…"]),
        (Pair | str, ["Bob", "7"], ["Bob", "…"]),
        (Pair | str, "Bob", "Bob"),
    ],
)  # fmt: skip
def test_what_is_marked_is_masked_wherever_it_stands_and_nothing_else(kind: Any, given: object, shown: object) -> None:  # noqa: ANN401 - any type
    record = msgspec.defstruct("Record", [("id", str), ("held", kind), ("raw", msgspec.Raw)])
    stream = Stream[Any]("records", record, key=lambda value: value.id)
    value = stream.decode(json.dumps({"id": "1", "held": given, "raw": {"a": 1}}).encode())
    assert stream.masking.mask(value) == {"id": "1", "held": shown, "raw": {"a": 1}}
    assert not stream.masking.hides_key
    if shown != given:
        assert b"ada" not in stream.masking.text_of(value).lower()


def test_a_type_without_marks_is_left_alone() -> None:
    stream = Stream("dogs", Dog, key=lambda dog: dog.name)
    dog = Dog("Rex")
    assert not stream.masking
    assert stream.masking.mask(dog) is dog
    assert not stream.masking.hides_key


class Account(msgspec.Struct):
    email: Secret
    id: str
    address: Address
    owner: Cat | None = None


@pytest.mark.parametrize(
    ("key", "hidden"),
    [
        (lambda one: one.id, False),
        (lambda one: f"{one.id}-{one.address.city}", False),
        (lambda one: one.email, True),
        (lambda one: one.email.lower()[:1], True),
        (lambda one: one.address.street_name, True),
        (lambda one: one.owner.chip if one.owner else one.id, True),
        (lambda one: one.nothing, True),
        (lambda one: one.id or one.email, True),
        (lambda one: "".join(filter(str.isdigit, one.email)), True),
        (lambda one: one.email[4:], True),
        (lambda one: one.email.partition("@")[2], True),
        (lambda one: str(int(one.id, 36)), False),
    ],
)
def test_a_key_is_hidden_if_it_is_made_of_a_sensitive_field(key: Any, hidden: bool) -> None:  # noqa: ANN401, FBT001
    assert Stream("accounts", Account, key=key).masking.hides_key == hidden


def test_a_key_of_a_union_is_hidden_if_it_is_sensitive_in_one_of_its_types() -> None:
    stream = Stream[Any]("pets", Cat | Dog, key=lambda pet: pet.chip if isinstance(pet, Cat) else pet.name)
    assert stream.masking.hides_key


def test_the_mask_tells_no_length() -> None:
    assert masked("x") == masked("x" * 99) == masked(12345) == "…"
    assert masked("a@example.com") == masked("a" * 50 + "@example.com")


@dataclass
class Unmasked:
    """What cannot be masked: its fields cannot be refused at every depth either."""

    chip: Secret


class WithUnmasked(msgspec.Struct):
    """An owner of what cannot be masked."""

    id: str
    pet: Unmasked


def test_a_consumer_of_what_cannot_be_masked_does_not_start() -> None:
    with pytest.raises(BadStream, match="Unmasked: expected a plain"):
        create_consumer(Settings(), streams=[Stream("pets", WithUnmasked, key=lambda one: one.id)])
