import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.person import PEOPLE, Person
from contracts.stream import encode

ADA = Person(
    id="0b0d5c4e-6b3f-4a55-9a43-0c8f5d1c7f11",
    name="Ada Lovelace",
    age=36,
    email="ada.lovelace@example.com",
    phone="+1-202-555-0143",
    address="12 St James Square",
    city="London",
    state="NY",
    zip="10001",
    country="United States",
)


def a_person(**fields: Any) -> Person:  # noqa: ANN401 - of any field
    return msgspec.structs.replace(ADA, **fields)


def fields_of_a_person(**fields: Any) -> dict[str, Any]:  # noqa: ANN401 - right or wrong ones
    return {**msgspec.to_builtins(ADA), **fields}


def as_json(**fields: Any) -> bytes:  # noqa: ANN401 - right or wrong ones
    return msgspec.json.encode(fields_of_a_person(**fields))


FIELDS = ["id", "name", "age", "email", "phone", "address", "city", "state", "zip", "country"]
DECODERS = pytest.mark.parametrize("decoder", [PEOPLE.decode, PEOPLE.decode_strictly], ids=["tolerant", "strict"])
ANYTHING = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.builds(
        Person,
        id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64),
        name=ANYTHING,
        age=st.integers(0, 150),
        email=ANYTHING,
        phone=ANYTHING,
        address=ANYTHING,
        city=ANYTHING,
        state=ANYTHING,
        zip=ANYTHING,
        country=ANYTHING,
    )
)
def test_whatever_a_producer_accepts_a_consumer_reads_unchanged(person: Person) -> None:
    accepted = PEOPLE.decode_strictly(encode(person))
    assert PEOPLE.decode(encode(accepted)) == person


def test_the_fields_stand_in_the_record_in_the_order_of_the_contract() -> None:
    assert [name for name, _ in json.loads(encode(ADA), object_pairs_hook=list)] == FIELDS
    shuffled = json.dumps(dict(reversed(fields_of_a_person().items()))).encode()
    assert encode(PEOPLE.decode_strictly(shuffled)) == encode(ADA)


@DECODERS
@pytest.mark.parametrize("field", FIELDS)
def test_no_field_may_be_missing(decoder: Any, field: str) -> None:  # noqa: ANN401 - msgspec's method
    fields = fields_of_a_person()
    del fields[field]
    with pytest.raises(msgspec.ValidationError, match=f"`{field}`"):
        decoder(json.dumps(fields).encode())


WRONG: list[tuple[str, object]] = [
    *((field, None) for field in FIELDS),
    *(("age", value) for value in ("36", 36.5, 36.0, True, -1, 151, 2**70)),  # a type is never converted
    *(("id", value) for value in (7, "", "x" * 65)),
    ("zip", 10001),
]


@DECODERS
@pytest.mark.parametrize(("field", "value"), WRONG)
def test_null_another_type_and_a_value_out_of_range_are_refused(decoder: Any, field: str, value: object) -> None:  # noqa: ANN401 - msgspec's method
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{field}`"):
        decoder(as_json(**{field: value}))


@DECODERS
@pytest.mark.parametrize(("field", "value"), [("age", 0), ("age", 150), ("id", "x"), ("id", "🙂" * 64), ("name", "")])
def test_a_value_at_the_edge_of_its_range_is_taken(decoder: Any, field: str, value: object) -> None:  # noqa: ANN401 - msgspec's method
    assert getattr(decoder(as_json(**{field: value})), field) == value


@pytest.mark.parametrize("person_id", ["x", "Ωμέγα", "🙂" * 64])
def test_the_key_is_the_id_in_utf_8(person_id: str) -> None:
    assert PEOPLE.keys_of([a_person(id=person_id)]) == [person_id.encode("utf-8")]


def test_what_any_service_needs_does_not_speak_of_people() -> None:
    files = [*(Path(__file__).parents[3] / "apps" / "chassis").rglob("*.py")]
    assert files
    assert [file.name for file in files if re.search("person|people", file.read_text(), re.IGNORECASE)] == []


def test_of_a_person_the_ways_to_reach_them_are_masked() -> None:
    person = PEOPLE.decode(json.dumps(PEOPLE.example).encode())
    shown = PEOPLE.masking.mask(person)
    assert isinstance(shown, dict)
    changed = {name for name, value in shown.items() if value != PEOPLE.example[name]}
    assert changed == {"email", "phone", "address"}
    assert list(shown) == list(PEOPLE.example)
    assert not PEOPLE.masking.hides_key
