"""Makes people: polyfactory's factory with realistic values, drawn a column at a time."""

from random import Random
from typing import Any

import numpy as np
from faker.providers.address.en_US import Provider as Addresses
from faker.providers.person.en_US import Provider as Names
from numpy.typing import NDArray
from polyfactory.factories.msgspec_factory import MsgspecFactory

from contracts.person import Person

FIRST_NAMES = np.array(list(Names.first_names), dtype=object)
LAST_NAMES = np.array(list(Names.last_names), dtype=object)
STREETS = np.array(
    [f"{name} {suffix}" for name in LAST_NAMES for suffix in ("Street", "Avenue", "Road", "Lane", "Court")],
    dtype=object,
)
CITIES = np.array(
    [
        f"{prefix} {name}{suffix}"
        for prefix in Addresses.city_prefixes
        for name in FIRST_NAMES[:50]
        for suffix in Addresses.city_suffixes
    ],
    dtype=object,
)
STATES = np.array(Addresses.states_abbr, dtype=object)
MAIL_DOMAINS = np.array(["example.com", "example.net", "example.org"], dtype=object)
"""Reserved for examples: no mail to a person made here can reach anyone (RFC 2606, section 3)."""
AGES = np.arange(18, 101)


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
    rows = iter(np.frombuffer(random.randbytes(4 * COLUMNS * n), dtype=np.uint32).reshape(COLUMNS, n))

    def pick(values: NDArray[Any]) -> list[Any]:
        picked: list[Any] = values[next(rows) % len(values)].tolist()
        return picked

    def number(least: int, most: int) -> list[int]:
        numbers: list[int] = (next(rows) % (most - least + 1) + least).tolist()
        return numbers

    first, last = pick(FIRST_NAMES), pick(LAST_NAMES)
    return {
        "id": uuids(random, n),
        "name": [f"{a} {b}" for a, b in zip(first, last, strict=True)],
        "age": pick(AGES),
        "email": [
            f"{a}.{b}{number}@{domain}".lower()
            for a, b, number, domain in zip(first, last, number(0, 9_999), pick(MAIL_DOMAINS), strict=True)
        ],
        "phone": [f"+1-{a}-555-{b}" for a, b in zip(number(200, 999), number(1_000, 9_999), strict=True)],
        "address": [f"{a} {b}" for a, b in zip(number(1, 9_999), pick(STREETS), strict=True)],
        "city": pick(CITIES),
        "state": pick(STATES),
        "zip": [f"{a}" for a in number(10_000, 99_999)],
        "country": ["United States"] * n,
    }


COLUMNS = 12
"""Columns of random numbers that `draw` uses."""


def uuids(random: Random, n: int) -> list[str]:
    """Return `n` random UUIDs (version 4, RFC 9562) in their usual form."""
    digits = random.randbytes(16 * n).hex()
    return [
        f"{digits[at : at + 8]}-{digits[at + 8 : at + 12]}-4{digits[at + 13 : at + 16]}"
        f"-{'89ab'[i & 3]}{digits[at + 17 : at + 20]}-{digits[at + 20 : at + 32]}"
        for i, at in enumerate(range(0, 32 * n, 32))
    ]
