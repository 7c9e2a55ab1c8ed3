"""Which records are for this group: a redriven record names the group that it was sent back for.

The other groups of the topic have consumed the original already. Without this, two groups that both refuse a record
would each dead-letter the other's copy too, and the copies would double with each redrive.
"""

from collections.abc import Sequence

from contracts.dead_letter import REDRIVEN_FOR, history, redriven_for
from contracts.record import Record

FOR_ANOTHER_GROUP = "for_another_group"
"""Why a record was passed over, as its metric says."""


def divide(records: Sequence[Record], group: str | None) -> tuple[Sequence[Record], Sequence[Record]]:
    """Return the records that `group` consumes, and those that were sent back for another group.

    A record that names no group, or another topic than the one it stands on, is for all groups. A group of None
    consumes all.
    """
    if group is None or not (with_headers := [record for record in records if record.headers]):
        return records, ()
    naming_one = [record for record in with_headers if REDRIVEN_FOR in dict(record.headers)]  # nearly always none
    others = {id(record) for record in naming_one if _is_for_another(record, group)}
    if not others:
        return records, ()
    return (
        [record for record in records if id(record) not in others],
        [record for record in records if id(record) in others],
    )


def is_redriven(record: Record) -> bool:
    """Return whether a record was sent back from the dead letters."""
    return history(record.headers)[2] > 0


def _is_for_another(record: Record, group: str) -> bool:
    target = redriven_for(record.headers)
    return target is not None and target.topic == record.topic and target.group != group
