"""The ledger itself: it finds nothing where all is well, and each thing that is not."""

import time
from array import array
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from ledger import ALONE, RAW, Handled, Ledger, Letters, Log, compare
from marks import BATCH, DONE, identity_of
from receipts import NOT_WRITTEN, Receipt
from services import Raw, event, value_of

from contracts.dead_letter import DeadLetter
from contracts.stream import encode
from tests.event import Event

BAD = Raw(b"bad", None, (("null", None),))
LISTED = [Event("of-two", 1, "ListedAsTheFirst"), Event("of-two", 2, "ListedAsTheSecond")]
RECEIPTED, UNANSWERED = Event("of-a-receipt", 3, "ToldByAReceipt"), Event("of-nobody", 4, "NobodyWasTold")


class Course:
    """What happened: 0 to 2 of one key, 3 alone, 4 refused, 5 not written, 6 past the services, and four made up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = Ledger()
        self.ledger.claim(1, [7, 7, 7, ALONE, ALONE, ALONE], [False] * 4 + [True, False])
        self.ledger.claim(2, [RAW], [False])
        self.ledger.raw[6] = Raw(value_of(event(text="#6")), b"odd")
        self.receipts = {number: self.receipt(number, number) for number in range(5)}
        self.log = {number: self.raw(number) for number in (0, 1, 2, 3, 4, 6)}
        self.log |= {11: BAD}
        self.log |= {21 + place: self.made(one) for place, one in enumerate([*LISTED, RECEIPTED, UNANSWERED])}
        self.handled = [[0, 1, 2], [3, 6], [identity_of(one.text) for one in [*LISTED, RECEIPTED, UNANSWERED]]]
        self.listed = [*LISTED]
        self.reported = [
            Receipt(RECEIPTED.id, 0, 23, 1_023),
            Receipt("of-unknown", error="e", outcome="unknown"),
            Receipt("not-written", error="e", outcome="not_written"),
        ]
        self.unanswered = 1
        self.letters = {4: self.raw(4), 11: BAD}
        self.ledger.bad.append((BAD, 0, 11))

    def raw(self, number: int) -> Raw:
        return self.ledger.raw.get(number) or Raw(self.ledger.event(number), self.ledger.key_of(number))

    def made(self, one: Event) -> Raw:
        return Raw(encode(one), one.id.encode())

    def receipt(self, number: int, offset: int) -> Receipt:
        return Receipt((self.ledger.key_of(number) or b"").decode(), 0, offset, 1_000 + offset)

    def violations(self) -> list[str]:
        for number, receipt in self.receipts.items():
            self.ledger.settle(number, receipt)
        self.ledger.settle_all([5], NOT_WRITTEN)
        self.ledger.made_up.note_list(3, self.listed)
        self.ledger.made_up.note_receipts(self.reported)
        self.ledger.made_up.note_unanswered(self.unanswered)
        log, letters, handled = Log(self.ledger), Letters("events", "group"), Handled(self.folder)
        for offset, raw in self.log.items():
            log._note(0, offset, 1_000 + offset, raw)
        for offset, raw in self.letters.items():
            headers = DeadLetter(
                raw.key, raw.value, raw.headers, "events", 0, offset, 1_000 + offset, "group", "E", "e", 1
            ).all_headers()
            letters._note(Raw(raw.value, raw.key, tuple(headers)), log)
        with (self.folder / "one.ledger").open("wb") as file:
            for batch in self.handled:
                file.write(array("q", [BATCH, DONE, time.monotonic_ns(), len(batch), *batch]).tobytes())
            file.write(array("q", [BATCH, DONE, time.monotonic_ns(), 2, 5]).tobytes())  # cut by a kill
        handled.read_on()
        return compare(self.ledger, log, handled, letters).violations


def test_where_all_is_well_nothing_is_found(tmp_path: Path) -> None:
    assert Course(tmp_path).violations() == []


def swap(course: Course, one: int, other: int) -> None:
    course.log[one], course.log[other] = course.log[other], course.log[one]
    course.receipts[one], course.receipts[other] = course.receipt(one, other), course.receipt(other, one)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda course: course.log.pop(3), "acknowledged records that are missing"),
        (lambda course: course.log.update({20: course.raw(5)}), "written after all"),
        (lambda course: course.log.update({20: course.raw(3)}), "stand in the log twice"),
        (lambda course: course.log.update({20: Raw(course.ledger.event(3), b"x")}), "not sent so"),
        (lambda course: course.log.update({20: Raw(value_of(event("x", text="#9")), b"x")}), "nobody sent"),
        (lambda course: course.receipts.update({3: course.receipt(3, 9)}), "name another place"),
        (lambda course: course.receipts.update({3: course.receipt(2, 3)}), "untrue answers"),
        (lambda course: swap(course, 0, 1), "overtook an earlier one"),
        (lambda course: course.log.pop(22), "acknowledged records that are missing"),
        (lambda course: course.log.pop(23), "name another place"),
        (lambda course: course.reported.append(Receipt("of-a-receipt")), "acknowledged records that are missing"),
        (
            lambda course: course.reported.append(Receipt("of-nobody", error="e", outcome="not_written")),
            "written after all",
        ),
        (lambda course: course.listed.reverse(), "overtook an earlier one"),
        (lambda course: course.log.update({24: Raw(encode(UNANSWERED), b"x")}), "not sent so"),
        (lambda course: course.log.update({25: course.log[21]}), "stand in the log twice"),
        (lambda course: setattr(course, "unanswered", 0), "nobody sent"),
        (lambda course: course.handled[2].pop(), "never handled"),
        (lambda course: course.handled[1].remove(6), "never handled"),
        (lambda course: course.handled[1].append(4), "handled, but not good"),
        (lambda course: course.handled[1].append(5), "handled, but not good"),
        (lambda course: course.handled[0].reverse(), "handled before an earlier one"),
        (lambda course: course.log.pop(11), "acknowledged bad records that are missing"),
        (lambda course: course.letters.pop(11), "not dead-lettered"),
        (lambda course: course.letters.pop(4), "not dead-lettered"),
        (lambda course: course.letters.update({3: course.raw(3)}), "was good"),
        (lambda course: course.letters.update({11: Raw(b"bad", b"", BAD.headers)}), "differs"),
        (lambda course: course.letters.update({11: Raw(b"bad", None, (("null", b""),))}), "differs"),
    ],
)
def test_whatever_is_not_well_is_found(tmp_path: Path, spoil: Callable[[Course], object], found: str) -> None:
    course = Course(tmp_path)
    spoil(course)
    violations = course.violations()
    assert any(found in violation for violation in violations), violations


def test_a_record_that_is_handled_again_is_no_violation(tmp_path: Path) -> None:
    course = Course(tmp_path)
    course.handled.append([1, 2])
    assert course.violations() == []


def test_receipts_count_as_what_they_say() -> None:
    assert msgspec.convert({"id": "a", "error": "e", "outcome": "not_written"}, Receipt).fate == NOT_WRITTEN
