import asyncio
import re
from uuid import UUID

import pytest

from apps.producer.generating.generators import STOCK_RECORDS, generator_of, take_from_stock
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


def test_every_id_is_a_random_uuid_and_none_comes_twice() -> None:
    ids = [person.id for person in PersonFactory.batch(20_000)]
    assert len(set(ids)) == len(ids)
    parsed = [UUID(person_id) for person_id in ids]
    assert {uuid.version for uuid in parsed} == {4}
    assert {uuid.variant for uuid in parsed} == {"specified in RFC 4122"}
    assert [str(uuid) for uuid in parsed] == ids


@pytest.mark.anyio
async def test_calls_that_want_a_few_people_get_each_of_them_once() -> None:
    generate, ids = await generator_of(PEOPLE), set[str]()
    numbers = (1, 10, STOCK_RECORDS - 1, 1, 2 * STOCK_RECORDS, 1, STOCK_RECORDS)
    for number in numbers:
        if not (people := [*take_from_stock(PEOPLE, number)]):
            people = [person async for chunk in generate(number, 100, asyncio.Semaphore()) for person in chunk]
        ids |= {person.id for person in people}
    assert len(ids) == sum(numbers)


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
