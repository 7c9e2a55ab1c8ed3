"""What a handler's process writes down of events and batches, for the ledger to read; it imports no test."""

ACCEPTED, REFUSED = "#", "!"
"""What begins the texts of events: those that the handler takes, and those that it refuses. Their number follows."""

BATCH, DONE, DONE_AND_FAILED = -1, 1, 2
"""What begins a batch in a handler's file, and what became of it. When it was (ns, monotonic) and of how many events
follows, and then a number for each."""


def identity_of(text: str) -> int:
    """Return the number that stands for an event."""
    return int(text[1:])
