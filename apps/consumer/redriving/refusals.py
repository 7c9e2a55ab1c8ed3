"""Why a redrive sent nothing back: each message says what to do."""


class RedriveRefused(Exception):
    """Nothing was sent back; the message says why, and what to do."""


class RedriveNotNow(RedriveRefused):
    """Another redrive is under way, or it is unknown what was sent back, or the letter is another group's."""


class SentBefore(RedriveRefused):
    """The requested dead letter was sent back before."""


class TooLarge(RedriveRefused):
    """Kafka refuses the size of a record; the message has the sizes."""


class NoSuchLetter(RedriveRefused):
    """There is no such dead letter, or it is not of this service's topic."""
