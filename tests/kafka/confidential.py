"""What no log may tell, and how it is found there. What the tests send in records is marked, or has a known shape."""

import re

MARK = "Quillfeather"
"""Stands in texts and keys of the tests' events, and nowhere else."""

CONTENT = {
    "a mark": re.compile(MARK, re.IGNORECASE),
    "an id": re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"),
    "a field of a record": re.compile(r"""["'](?:text|email|phone|address)["']\s*:|\b(?:Event|Person)\(id="""),
    "a mail address": re.compile(r"[\w.+-]+@example\.\w+"),
}
"""Events have UUIDs as ids where a test does not name them; examples of people have mail addresses that nobody has."""


def content_in(log: str) -> list[str]:
    """Return what a log tells of the content of records, each with the line that it stands in."""
    lines = log.splitlines()
    return [f"{what}: {line[:300]}" for line in lines for what, shape in CONTENT.items() if shape.search(line)]
