"""Report every move of a position that neither consuming nor an operator made: it is logged, counted and kept."""

import logging
from collections import Counter, deque
from datetime import UTC, datetime
from typing import Literal

import msgspec

log = logging.getLogger(__name__)

KEPT_MOVES = 20
"""How many of the newest moves the status shows."""

Reason = Literal["deleted", "out_of_range", "forgotten", "altered", "recreated"]
REASONS: dict[Reason, str] = {
    "deleted": "its records were deleted before they were consumed",
    "out_of_range": "it was beyond the end of the partition, which was truncated or recreated",
    "forgotten": "the group has nothing committed there any more (expired, or deleted)",
    "altered": "another client committed offsets of the group",
    "recreated": "the topic was deleted and created again",
}
"""Why a position moved, in words."""


class Move(msgspec.Struct, frozen=True):
    """A position that moved without consuming or an operator; `skipped` records were not consumed.

    A move back skips none: its records are consumed again. Neither do offsets without a record yet, or that the
    group has committed before.
    """

    partition: int
    reason: Reason
    before: int
    after: int
    skipped: int
    at: str = msgspec.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))


class Moves:
    """The moves so far: `skipped` counts records by partition and reason, `moved` the moves; `newest` are some."""

    def __init__(self) -> None:
        self.skipped: Counter[tuple[int, Reason]] = Counter()
        self.moved: Counter[tuple[int, Reason]] = Counter()
        self.newest: deque[Move] = deque(maxlen=KEPT_MOVES)

    def report(self, move: Move) -> None:
        """Log, count and keep a move."""
        self.skipped[move.partition, move.reason] += move.skipped
        self.moved[move.partition, move.reason] += 1
        self.newest.append(move)
        back = move.before - move.after
        log.warning(
            "the position of partition %d moved from %d to %d, %s: %s",
            move.partition,
            move.before,
            move.after,
            f"{back} offsets are consumed again" if back > 0 else f"{move.skipped} records were skipped",
            REASONS[move.reason],
            extra={"partition": move.partition, "offset": move.after, "records": move.skipped},
        )
