import re
from collections import Counter
from uuid import UUID

import pytest

from apps.producer.generating.people import MAIL_DOMAINS, PersonFactory
from contracts.person import PEOPLE, Person
from contracts.stream import encode

EXAMPLE_DOMAINS = {"example.com", "example.net", "example.org"}


def test_the_same_seed_makes_the_same_people() -> None:
    PersonFactory.seed_random(7)
    first = PersonFactory.batch(50), PersonFactory.build()
    PersonFactory.seed_random(7)
    assert (PersonFactory.batch(50), PersonFactory.build()) == first
    PersonFactory.seed_random(8)
    assert PersonFactory.batch(50) != first[0]


def test_a_seed_makes_a_single_person_reproducible_too() -> None:
    PersonFactory.seed_random(7)
    first = PersonFactory.build()
    PersonFactory.seed_random(7)
    assert PersonFactory.build() == first


def test_two_batches_hold_different_people() -> None:
    ids = [person.id for person in PersonFactory.batch(100) + PersonFactory.batch(100)]
    assert len(set(ids)) == 200


def test_every_id_is_a_random_uuid_and_none_comes_twice() -> None:
    ids = [person.id for person in PersonFactory.batch(20_000)]
    assert len(set(ids)) == len(ids)
    parsed = [UUID(person_id) for person_id in ids]
    assert {uuid.version for uuid in parsed} == {4}
    assert {uuid.variant for uuid in parsed} == {"specified in RFC 4122"}
    assert [str(uuid) for uuid in parsed] == ids


def test_ages_reach_from_18_to_100() -> None:
    assert set(Counter(person.age for person in PersonFactory.batch(20_000))) == set(range(18, 101))


def test_no_mail_can_reach_anyone() -> None:
    addresses = [person.email for person in PersonFactory.batch(2_000)]
    assert {address.partition("@")[2] for address in addresses} == EXAMPLE_DOMAINS == set(MAIL_DOMAINS)
    assert all(re.fullmatch(r"[a-z.'-]+\d*@[a-z.]+", address) for address in addresses)


def test_every_person_made_is_one_that_the_producer_accepts() -> None:
    for person in [*PersonFactory.batch(2_000), PersonFactory.build()]:
        assert encode(PEOPLE.decode_strictly(encode(person))) == encode(person)
        assert type(person) is Person


def test_every_person_has_a_zip_of_five_digits_and_a_phone_of_the_same_form() -> None:
    for person in PersonFactory.batch(5_000):
        assert re.fullmatch(r"\d{5}", person.zip)
        assert re.fullmatch(r"\+1-[2-9]\d\d-555-\d{4}", person.phone)


def test_a_field_given_is_the_same_for_all_and_the_others_are_drawn() -> None:
    people = PersonFactory.batch(30, city="London", age=36)
    assert {(person.city, person.age) for person in people} == {("London", 36)}
    assert len({person.id for person in people}) == 30
    assert len({person.name for person in people}) > 1


def test_a_single_person_takes_the_fields_given_too() -> None:
    person = PersonFactory.build(id="ada", name="Ada Lovelace")
    assert (person.id, person.name) == ("ada", "Ada Lovelace")
    assert 18 <= person.age <= 100
    assert person.email.partition("@")[2] in EXAMPLE_DOMAINS


@pytest.mark.parametrize("size", [0, 1, 2_001])
def test_a_batch_has_as_many_people_as_asked_for(size: int) -> None:
    assert len(PersonFactory.batch(size)) == size


def test_coverage_yields_people() -> None:
    people = list(PersonFactory.coverage())
    assert people
    assert all(isinstance(person, Person) for person in people)


def test_a_field_that_no_person_has_is_refused_in_a_batch_as_for_one() -> None:
    with pytest.raises(TypeError):
        PersonFactory.build(no_field_of_anyone="Countess")
    with pytest.raises(TypeError):
        PersonFactory.batch(2, no_field_of_anyone="Countess")
