"""What the ledger is made of: receipts, rows of numbers, and what was found by comparing them."""

from array import array
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

UNANSWERED, DELIVERED, UNKNOWN, NOT_WRITTEN = range(4)
OUTCOMES = {"unknown": UNKNOWN, "not_written": NOT_WRITTEN}

EXAMPLES = 5

Numbers = NDArray[np.int64]


class Receipt(msgspec.Struct):
    """What a producer says of a record."""

    id: str = ""
    partition: int = -1
    offset: int = -1
    timestamp: int = -1
    error: str | None = None
    outcome: str | None = None

    @property
    def fate(self) -> int:
        """How the ledger counts it."""
        return DELIVERED if self.error is None else OUTCOMES[self.outcome or ""]


class Table:
    """Rows of numbers in little memory; a column is an attribute."""

    def __init__(self, *columns: str) -> None:
        self._columns = {name: array("q") for name in columns}

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def add(self, count: int = 1, **values: int) -> range:
        """Append rows that are alike; return their numbers."""
        start = len(self)
        for name, column in self._columns.items():
            column.extend([values[name]] * count)
        return range(start, start + count)

    def set(self, row: int, **values: int) -> None:
        """Change a row."""
        for name, value in values.items():
            self._columns[name][row] = value

    def get(self, row: int, column: str) -> int:
        """Return one number."""
        return self._columns[column][row]

    def column(self, name: str) -> Numbers:
        """Return a column; no rows can be added as long as it is referred to, so it is a copy."""
        return np.array(self._columns[name], dtype=np.int64)


class Findings:
    """What the comparison found: counts, and everything that must not be."""

    def __init__(self) -> None:
        self.counts: dict[str, int | str] = {}
        self.violations: list[str] = []

    def refuse(self, what: str, found: Sequence[object] | Numbers) -> None:
        """Note a violation with some examples, unless nothing was found."""
        if len(found):
            examples = "; ".join(str(one)[:500] for one in found[:EXAMPLES])
            self.violations.append(f"{what}: {len(found)}, e.g. {examples}")
