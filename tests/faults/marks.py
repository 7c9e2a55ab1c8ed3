"""What a handler's process writes down of events and batches, for the ledger to read; it imports no test."""

from hashlib import blake2b

ACCEPTED, REFUSED = "#", "!"
"""What begins the texts of events: those that the handler takes, and those that it refuses. Their number follows."""

BATCH, DONE, DONE_AND_FAILED = -1, 1, 2
"""What begins a batch in a handler's file, and what became of it. When it was (ns, monotonic) and of how many events
follows, and then a number for each."""


MADE_UP = 1 << 60
"""Numbers from here on stand for events that a producer made up."""


def identity_of(text: str) -> int:
    """Return the number that stands for an event."""
    return int(text[1:]) if text[:1] in {ACCEPTED, REFUSED} else digest_of(text.encode())


def digest_of(content: bytes) -> int:
    """Return a number that stands for what a producer made up: for its text, or for its key."""
    return int.from_bytes(blake2b(content, digest_size=7).digest()) | MADE_UP
