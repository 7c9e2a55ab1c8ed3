"""What no log may tell, and how it is found there. What the tests send of people is marked, or has a known shape."""

import re

MARK = "Quillfeather"
"""Stands in names, addresses and keys of the tests' people, and nowhere else."""

PERSONAL = {
    "a mark": re.compile(MARK, re.IGNORECASE),
    "a mail address": re.compile(r"[\w.+-]+@example\.\w+"),
    "an id": re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"),
    "a phone number": re.compile(r"\+1-\d{3}-555-\d{4}"),
    "a field of a person": re.compile(r"""["'](?:email|phone|address)["']\s*:|Person\("""),
}
"""The people that the producer makes have UUIDs as ids, and mail addresses and phone numbers that nobody has."""


def people_in(log: str) -> list[str]:
    """Return what a log tells of people, each with the line that it stands in."""
    lines = log.splitlines()
    return [f"{what}: {line[:300]}" for line in lines for what, shape in PERSONAL.items() if shape.search(line)]
