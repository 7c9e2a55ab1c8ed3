"""What an operator may do with dead letters."""

from enum import StrEnum


class Action(StrEnum):
    """Send dead letters back, discard them, or undo a discard."""

    REDRIVE = "redrive"
    DISCARD = "discard"
    RESTORE = "restore"

    @property
    def done(self) -> str:
        """How a letter is called after the action."""
        return {Action.REDRIVE: "sent back", Action.DISCARD: "discarded", Action.RESTORE: "restored"}[self]
