"""What was sent, answered, written and handled, kept outside of the services and compared at the end.

A good person's name says who sent it and as which: `3-1041` is number 1041 of caller 3. Everything is kept in arrays by
caller and number, so that millions fit.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from services import Record
from storm_consumer import NOWHERE

from contracts import dead_letter
from contracts.person import Person

NOT_ANSWERED, DELIVERED, UNKNOWN, NOT_WRITTEN = range(4)
OUTCOMES = ("not answered", "acknowledged", "unknown", "not written")
ABSENT = -1

decode = msgspec.json.Decoder(Person).decode


class Caller:
    """The people of one caller; `keys` is how many ids it uses in turn (0: one a person)."""

    def __init__(self, number: int, keys: int) -> None:
        self.number = number
        self.keys = keys
        self.outcome = bytearray()
        self.said = array("q")  # partition and offset of the receipt, in one number
        self.found = array("q")  # and of the record in the log
        self.times_written = bytearray()
        self.times_handled = bytearray()

    def people(self, count: int, template: Person) -> list[Person]:
        """Return the next people, not answered yet; now and then one whom the handler refuses."""
        start = len(self.outcome)
        for counter in (self.outcome, self.times_written, self.times_handled):
            counter.extend(bytes(count))
        self.said.extend([ABSENT] * count)
        self.found.extend([ABSENT] * count)
        return [
            msgspec.structs.replace(
                template,
                id=f"{self.number}-{at % self.keys if self.keys else at}",
                name=f"{self.number}-{at}",
                city=NOWHERE if at % 5_003 == 7 else "Somewhere",
            )
            for at in range(start, start + count)
        ]

    def answered(self, start: int, receipts: Sequence[dict[str, Any]]) -> None:
        """Note what the receipts of people from number `start` on say."""
        for at, receipt in enumerate(receipts, start):
            outcome = receipt.get("outcome")
            self.outcome[at] = {None: DELIVERED, "unknown": UNKNOWN, "not_written": NOT_WRITTEN}[outcome]
            if outcome is None and "offset" in receipt:
                self.said[at] = place(receipt["partition"], receipt["offset"])


def place(partition: int, offset: int) -> int:
    """Return a partition and an offset as one number."""
    return partition << 48 | offset


def owner(name: str) -> tuple[int, int]:
    """Return caller and number of a good person's name."""
    caller, _, number = name.partition("-")
    return int(caller), int(number)


@dataclass
class Ledger:
    """All callers, what there is, and what must not be."""

    callers: list[Caller]
    wrong: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def complain(self, what: str, example: object) -> None:
        """Count something that must not be."""
        self.wrong[what] += 1
        self.examples.setdefault(what, str(example))

    def read_log(self, batches: Iterator[Sequence[Record]]) -> dict[int, Record]:
        """Note what the topic holds; return the records that are to be dead-lettered, by place."""
        bad: dict[int, Record] = {}
        for records in batches:
            for record in records:
                where = place(record.partition, record.offset)
                try:
                    person = decode(record.value or b"")
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    bad[where] = record
                    continue
                number, at = owner(person.name)
                caller = self.callers[number]
                caller.found[at] = where
                caller.times_written[at] += 1
                self.counts["in the log"] += 1
                if person.city == NOWHERE:
                    bad[where] = record
        return bad

    def read_handled(self, path: Path) -> None:
        """Note whom the handlers handled, and whether the first time kept the order within a key."""
        latest: dict[tuple[int, int], int] = {}
        with path.open() as lines:
            for line in lines:
                number, at = owner(line.rstrip("\n"))
                caller = self.callers[number]
                self.counts["handled"] += 1
                caller.times_handled[at] = min(255, caller.times_handled[at] + 1)
                if caller.keys and caller.times_handled[at] == 1:
                    key = number, at % caller.keys
                    if caller.found[at] < latest.get(key, ABSENT):
                        self.complain("handled out of order within a key", line)
                    latest[key] = max(latest.get(key, ABSENT), caller.found[at])

    def compare(self, bad: dict[int, Record], letters: Sequence[Record]) -> None:
        """Compare what was said with what is."""
        for caller in self.callers:
            self._compare(caller, bad)
        self._compare_dead_letters(bad, letters)

    def _compare(self, caller: Caller, bad: dict[int, Record]) -> None:
        latest: dict[int, int] = defaultdict(lambda: ABSENT)
        for at, outcome in enumerate(caller.outcome):
            name, found, said = f"{caller.number}-{at}", caller.found[at], caller.said[at]
            self.counts[OUTCOMES[outcome]] += 1
            if outcome == DELIVERED and found == ABSENT:
                self.complain("acknowledged and not in the log", name)
            if outcome == DELIVERED and said not in (ABSENT, found):
                self.complain("a receipt that is not true", name)
            if outcome == NOT_WRITTEN and found != ABSENT:
                self.complain("said to be not written and in the log", name)
            if caller.times_written[at] > 1:
                self.complain("written twice", name)
            if found != ABSENT and found not in bad and not caller.times_handled[at]:
                self.complain("in the log and not handled", name)
            self.counts["handled again"] += max(0, caller.times_handled[at] - 1)
            if caller.keys and outcome == DELIVERED and found != ABSENT:
                if found < latest[at % caller.keys]:
                    self.complain("acknowledged out of order within a key", name)
                latest[at % caller.keys] = found

    def _compare_dead_letters(self, bad: dict[int, Record], letters: Sequence[Record]) -> None:
        seen: Counter[int] = Counter()
        for record in letters:
            letter = dead_letter.read(record.key, record.value, record.headers)
            where = place(letter.partition, letter.offset)
            seen[where] += 1
            original = bad.get(where)
            if original is None:
                self.complain("dead-lettered and good", where)
            elif (letter.key, letter.value, letter.headers) != (original.key, original.value, original.headers):
                self.complain("a dead letter that is not the record", where)
        for where in bad.keys() - seen.keys():
            self.complain("bad and not dead-lettered", bad[where])
        self.counts["bad in the log"] = len(bad)
        self.counts["dead letters"] = len(letters)
        self.counts["dead-lettered again"] = sum(seen.values()) - len(seen)
