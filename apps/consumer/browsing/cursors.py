"""Places in a topic as text: an offset in each partition, as the cursor of a search and the id of an event."""

import re
from collections.abc import Mapping

PLACE = re.compile(r"([0-9]{1,9})-([0-9]{1,18})")


def write_offsets(offsets: Mapping[int, int]) -> str:
    """Return `partition-offset` of each partition, joined by underscores."""
    return "_".join(f"{partition}-{offset}" for partition, offset in sorted(offsets.items()))


def read_offsets(text: str) -> dict[int, int]:
    """Read what `write_offsets` made; empty text names no partition. Raises `ValueError` for anything else."""
    offsets: dict[int, int] = {}
    for part in text.split("_") if text else ():
        if not (place := PLACE.fullmatch(part)) or int(place[1]) in offsets:
            raise ValueError(f"not a cursor: {text[:60]!r}")
        offsets[int(place[1])] = int(place[2])
    return offsets
