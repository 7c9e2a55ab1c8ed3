"""Why an action on dead letters did nothing: each message says what to do."""

from collections.abc import Collection


class RedriveRefused(Exception):
    """Nothing was sent back, discarded or restored; the message says why, and what to do."""


class RedriveNotNow(RedriveRefused):
    """Another action is under way, or it is unknown what was sent back, or the letter is another group's."""


class DeletedMeanwhile(RedriveNotNow):
    """Keys of selected dead letters are being deleted: the others can be sent back without these."""

    def __init__(self, why: str, keys: Collection[bytes | None] = ()) -> None:
        super().__init__(why)
        self.keys = keys


class DoneBefore(RedriveRefused):
    """The requested dead letter was sent back or discarded before, or is not discarded and so cannot be restored."""


class TooLarge(RedriveRefused):
    """Kafka refuses the size of a record; the message has the sizes."""


class NoSuchLetter(RedriveRefused):
    """There is no such dead letter, or it is not of this service's topic."""
