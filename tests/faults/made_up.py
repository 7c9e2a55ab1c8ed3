"""Records that a producer made up: two may have the same key, so what tells them apart is what they hold."""

import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from marks import digest_of
from receipts import DELIVERED, NOT_WRITTEN, UNKNOWN, Findings, Receipt, Table

from tests.event import Event

if TYPE_CHECKING:  # the ledger holds these, and hands them its log
    from ledger import Log

SHORT = 8
"""Characters of a key that records of other calls may have too, by chance."""


class MadeUp:
    """What producers said of records that they made up: lists of them, or receipts where not all were delivered."""

    def __init__(self) -> None:
        self.listed = Table("caller", "key", "identity")
        self.receipts: list[Receipt] = []
        self.unanswered = 0
        self._lock = threading.Lock()

    def note_list(self, caller: int, events: Sequence[Event]) -> None:
        """Note a list of events that were all delivered, in this order."""
        with self._lock:
            for one in events:
                key, identity = digest_of(one.id.encode()), digest_of(one.text.encode())
                self.listed.add(caller=caller, key=key, identity=identity)

    def note_receipts(self, receipts: Sequence[Receipt]) -> None:
        """Note the receipts of events of which some were not delivered."""
        with self._lock:
            self.receipts += receipts

    def note_unanswered(self, count: int) -> None:
        """Note that no answer said which records a call made, or whether they were written."""
        with self._lock:
            self.unanswered += count

    def compare(self, log: "Log", findings: Findings) -> None:
        """Compare what was said with what stands in the log."""
        listed = self.listed.column("identity")
        in_log = {name: log.made.column(name) for name in ("identity", "partition", "offset", "timestamp", "key")}
        findings.refuse("acknowledged records that are missing", np.setdiff1d(listed, in_log["identity"]))
        self._compare_order(in_log, findings)
        other = ~np.isin(in_log["identity"], listed)
        rows = zip(*(in_log[name][other].tolist() for name in ("partition", "offset", "timestamp", "key")), strict=True)
        self._compare_receipts({(partition, offset): (time, key) for partition, offset, time, key in rows}, findings)
        findings.counts["made up, acknowledged by a list"] = len(self.listed)

    def _compare_order(
        self, in_log: dict[str, "np.ndarray[tuple[int], np.dtype[np.int64]]"], findings: Findings
    ) -> None:
        """Records of one key in one caller's lists stand in one partition, in the order of the lists."""
        by_identity = np.argsort(in_log["identity"])
        known = in_log["identity"][by_identity]
        identity, caller, key = (self.listed.column(name) for name in ("identity", "caller", "key"))
        (rows,) = np.nonzero(np.isin(identity, known))
        at = by_identity[np.searchsorted(known, identity[rows])]
        partition, offset = in_log["partition"][at], in_log["offset"][at]
        order = np.lexsort((rows, caller[rows], key[rows]))
        same_key = key[rows][order][1:] == key[rows][order][:-1]
        same = same_key & (caller[rows][order][1:] == caller[rows][order][:-1])
        back = same & (offset[order][1:] <= offset[order][:-1])
        findings.refuse("records that overtook an earlier one of their key", identity[rows][order][1:][back])
        moved = same_key & (partition[order][1:] != partition[order][:-1])
        findings.refuse("records whose key stands in another partition too", identity[rows][order][1:][moved])

    def _compare_receipts(self, left: dict[tuple[int, int], tuple[int, int]], findings: Findings) -> None:
        """Explain each record of the log that stands in no list by a receipt, or by a call that was not answered."""
        placed = [one for one in self.receipts if one.fate == DELIVERED and one.offset >= 0]
        wrong = [
            one
            for one in placed
            if left.pop((one.partition, one.offset), None) != (one.timestamp, digest_of(one.id.encode()))
        ]
        findings.refuse("receipts that name another place or time", wrong)
        by_key = Counter(key for _, key in left.values())

        def found(one: Receipt) -> bool:
            by_key[digest_of(one.id.encode())] -= 1
            return by_key[digest_of(one.id.encode())] >= 0

        unplaced = [one for one in self.receipts if one.fate == DELIVERED and one.offset < 0]
        findings.refuse("acknowledged records that are missing", [one for one in unplaced if not found(one)])
        for one in self.receipts:
            if one.fate == UNKNOWN and by_key[digest_of(one.id.encode())] > 0:
                by_key[digest_of(one.id.encode())] -= 1
        unwritten = [one for one in self.receipts if one.fate == NOT_WRITTEN and len(one.id) > SHORT]
        after_all = [one for one in unwritten if by_key[digest_of(one.id.encode())] > 0]
        findings.refuse("records that were written after all", after_all)
        strangers = [key for key, count in by_key.items() if count > 0]
        if sum(by_key[key] for key in strangers) > self.unanswered:
            findings.refuse("records that nobody sent", strangers)
