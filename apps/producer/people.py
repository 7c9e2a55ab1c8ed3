"""Makes people: polyfactory's factory with realistic values, drawn a column at a time."""

from random import Random
from typing import Any

from faker.providers.address.en_US import Provider as Addresses
from faker.providers.person.en_US import Provider as Names
from polyfactory.factories.msgspec_factory import MsgspecFactory

from contracts.person import Person

FIRST_NAMES = list(Names.first_names)
LAST_NAMES = list(Names.last_names)
STREETS = [f"{name} {suffix}" for name in LAST_NAMES for suffix in ("Street", "Avenue", "Road", "Lane", "Court")]
CITIES = [
    f"{prefix} {name}{suffix}"
    for prefix in Addresses.city_prefixes
    for name in FIRST_NAMES[:50]
    for suffix in Addresses.city_suffixes
]
STATES = list(Addresses.states_abbr)
MAIL_DOMAINS = ["example.com", "example.net", "example.org"]
"""Reserved for examples: no mail to a person made here can reach anyone (RFC 2606, section 3)."""
YOUNGEST, OLDEST = 18, 100


class PersonFactory(MsgspecFactory[Person]):
    """Builds people. `batch` draws each field for all of them at once, a hundred times faster than one by one.

    `seed_random(n)` makes what follows reproducible; without it every process makes other people.
    """

    __model__ = Person
    __random__ = Random()  # noqa: S311 - invents people, guards nothing

    @classmethod
    def process_kwargs(cls, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401 - polyfactory's signature
        """Return the fields of one person: those given, and drawn ones."""
        drawn = {name: column[0] for name, column in draw(cls.__random__, 1).items()}
        return {**drawn, **kwargs}

    @classmethod
    def batch(cls, size: int, **kwargs: Any) -> list[Person]:  # noqa: ANN401 - polyfactory's signature
        """Return `size` people; a field given by name is the same for all."""
        if unknown := kwargs.keys() - set(Person.__struct_fields__):
            raise TypeError(f"a person has no {', '.join(sorted(unknown))}")
        columns = draw(cls.__random__, size) | {name: [value] * size for name, value in kwargs.items()}
        return list(map(Person, *(columns[field] for field in Person.__struct_fields__)))


def draw(random: Random, n: int) -> dict[str, list[Any]]:
    """Return `n` values of each field of a person: one call for a column instead of one a person."""
    numbers = memoryview(random.randbytes(8 * n)).cast("Q").tolist()
    first, last = random.choices(FIRST_NAMES, k=n), random.choices(LAST_NAMES, k=n)
    domains = random.choices(MAIL_DOMAINS, k=n)
    return {
        "id": uuids(random, n),
        "name": [f"{a} {b}" for a, b in zip(first, last, strict=True)],
        "age": random.choices(range(YOUNGEST, OLDEST + 1), k=n),
        "email": [
            f"{a}.{b}{number % 10_000}@{domain}".lower()
            for a, b, number, domain in zip(first, last, numbers, domains, strict=True)
        ],
        "phone": [f"+1-{200 + number % 800}-555-{number // 800 % 10_000:04}" for number in numbers],
        "address": [
            f"{1 + number % 9_999} {street}"
            for number, street in zip(numbers, random.choices(STREETS, k=n), strict=True)
        ],
        "city": random.choices(CITIES, k=n),
        "state": random.choices(STATES, k=n),
        "zip": [f"{501 + number % 99_000:05}" for number in numbers],
        "country": ["United States"] * n,
    }


def uuids(random: Random, n: int) -> list[str]:
    """Return `n` random UUIDs (version 4, RFC 9562) in their usual form."""
    digits = random.randbytes(16 * n).hex()
    return [
        f"{digits[at : at + 8]}-{digits[at + 8 : at + 12]}-4{digits[at + 13 : at + 16]}"
        f"-{'89ab'[i & 3]}{digits[at + 17 : at + 20]}-{digits[at + 20 : at + 32]}"
        for i, at in enumerate(range(0, 32 * n, 32))
    ]
