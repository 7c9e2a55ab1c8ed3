"""What a handler's process writes down of people and batches, for the ledger to read; it imports no test."""

ACCEPTED, REFUSED = "#", "!"
"""What begins the names of people: those that the handler takes, and those that it refuses. Their number follows."""

BATCH, DONE, DONE_AND_FAILED = -1, 1, 2
"""What begins a batch in a handler's file, and what became of it. When it was (ns, monotonic) and of how many people
follows, and then a number for each."""


def identity_of(person_id: str, name: str) -> int:
    """Return the number that stands for a person: the one in its name, or some of its UUID's bits."""
    return int(name[1:]) if name[:1] in {ACCEPTED, REFUSED} else identity_of_uuid(person_id)


def identity_of_uuid(text: str) -> int:
    """Return 60 bits of a UUID, as a number above all others."""
    return int(text[:8] + text[9:13] + text[15:18], 16) | 1 << 60
