"""Generate people: polyfactory's factory with realistic values, drawn a column at a time."""

from collections.abc import Iterable
from random import Random
from typing import Any

import numpy as np
from faker.providers.address.en_US import Provider as Addresses
from faker.providers.person.en_US import Provider as Names
from numpy.typing import NDArray
from polyfactory.factories.msgspec_factory import MsgspecFactory

from contracts.person import Person

Column = NDArray[np.object_]


def _column(values: Iterable[str]) -> Column:
    return np.array(list(values), dtype=object)


def _as_in_mail(values: Column) -> tuple[Column, Column]:
    return values, _column(value.lower() for value in values)


FIRST_NAMES, LAST_NAMES = _as_in_mail(_column(Names.first_names)), _as_in_mail(_column(Names.last_names))
STREETS = _column(f"{name} {kind}" for name in LAST_NAMES[0] for kind in ("Street", "Avenue", "Road", "Lane", "Court"))
CITIES = _column(
    f"{prefix} {name}{suffix}"
    for prefix in Addresses.city_prefixes
    for name in FIRST_NAMES[0][:50]
    for suffix in Addresses.city_suffixes
)
STATES = _column(Addresses.states_abbr)
MAIL_DOMAINS = _column(["example.com", "example.net", "example.org"])
"""Reserved for examples, so that mail to a generated person reaches nobody (RFC 2606, section 3)."""
YOUNGEST, OLDEST = 18, 100


class PersonFactory(MsgspecFactory[Person]):
    """Generate people. `batch` draws each field for all of them at once, a hundred times faster than one by one.

    Call `seed_random(n)` for reproducible people; without it every process generates other people.
    """

    __model__ = Person
    __random__ = Random()  # noqa: S311 - sample data, not security

    @classmethod
    def process_kwargs(cls, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401 - polyfactory's signature
        """Return the fields of one person: the given ones, and the rest drawn."""
        drawn = {name: column[0] for name, column in draw(cls.__random__, 1).items()}
        return {**drawn, **kwargs}

    @classmethod
    def batch(cls, size: int, **kwargs: Any) -> list[Person]:  # noqa: ANN401 - polyfactory's signature
        """Return `size` people; a field given by name is the same for all."""
        if unknown := kwargs.keys() - set(Person.__struct_fields__):
            raise TypeError(f"a person has no field {', '.join(sorted(unknown))}")
        columns = draw(cls.__random__, size) | {name: [value] * size for name, value in kwargs.items()}
        drawn = [field for field in Person.__struct_fields__ if field in columns]  # fields not drawn have a default
        if drawn == list(Person.__struct_fields__[: len(drawn)]):
            return list(map(Person, *(columns[field] for field in drawn)))
        return [Person(**dict(zip(drawn, row, strict=True))) for row in zip(*map(columns.get, drawn), strict=True)]


def draw(random: Random, n: int) -> dict[str, list[Any]]:
    """Return `n` values of each field of a person, with one call per column instead of one per person."""
    rows = iter(np.frombuffer(random.randbytes(4 * COLUMNS * n), dtype=np.uint32).reshape(COLUMNS, n))

    def numbers(low: int, high: int) -> list[Any]:
        drawn: list[Any] = (next(rows) % (high - low + 1) + low).tolist()
        return drawn

    def pick(*values: NDArray[Any]) -> list[list[Any]]:
        at = next(rows) % len(values[0])
        return [each[at].tolist() for each in values]

    (first, first_in_mail), (last, last_in_mail) = pick(*FIRST_NAMES), pick(*LAST_NAMES)
    (domains,), (streets,), (cities,), (states,) = pick(MAIL_DOMAINS), pick(STREETS), pick(CITIES), pick(STATES)
    return {
        "id": uuids(random, n),
        "name": [f"{a} {b}" for a, b in zip(first, last, strict=True)],
        "age": numbers(YOUNGEST, OLDEST),
        "email": [
            f"{a}.{b}{number}@{domain}"
            for a, b, number, domain in zip(first_in_mail, last_in_mail, numbers(0, 9_999), domains, strict=True)
        ],
        "phone": [f"+1-{a}-555-{b}" for a, b in zip(numbers(200, 999), numbers(1_000, 9_999), strict=True)],
        "address": [f"{a} {b}" for a, b in zip(numbers(1, 9_999), streets, strict=True)],
        "city": cities,
        "state": states,
        "zip": list(map(str, numbers(10_000, 99_999))),
        "country": ["United States"] * n,
    }


COLUMNS = 12
"""Columns of random numbers that `draw` uses."""


def uuids(random: Random, n: int) -> list[str]:
    """Return `n` random UUIDs (version 4, RFC 9562) as text with dashes."""
    octets = np.frombuffer(random.randbytes(16 * n), dtype=np.uint8).reshape(n, 16).copy()
    octets[:, 6] = octets[:, 6] & 0x0F | 0x40
    octets[:, 8] = octets[:, 8] & 0x3F | 0x80
    digits = np.frombuffer(octets.tobytes().hex().encode(), dtype=np.uint8).reshape(n, 32)
    dashed = np.insert(digits, (8, 12, 16, 20), ord("-"), axis=1).tobytes().decode()
    return [dashed[at : at + 36] for at in range(0, 36 * n, 36)]
