"""What is answered to the actions on dead letters: counts, and the places of the letters."""

from typing import TypeVar

import msgspec

from apps.consumer.redriving.redrive import LetterPlace


class Redrives(msgspec.Struct):
    """The dead letters that were sent back, by their place among them.

    `more` is whether there may be others to send back: fewer than asked for are when they are large. `would_redrive`
    is how many would be sent back, with `dry_run=true`: nothing is sent then. `refused` were found and not sent back,
    for the reason `refused_because`: their keys were deleted after them. `waiting_for_transaction` others stand behind
    another client's open transaction, which ends before anything can be done with them; null when Kafka did not say.
    """

    redriven: int
    dead_letters: list[LetterPlace]
    more: bool
    would_redrive: int | None = None
    refused: int = 0
    refused_because: str | None = None
    waiting_for_transaction: int | None = None


class Discards(msgspec.Struct):
    """The dead letters that were discarded, and whether there may be `more`; `would_discard` is for `dry_run=true`.

    `waiting_for_transaction` is that of a redrive.
    """

    discarded: int
    dead_letters: list[LetterPlace]
    more: bool
    would_discard: int | None = None
    waiting_for_transaction: int | None = None


class Restores(msgspec.Struct):
    """The dead letters that were restored, and whether there may be `more`; `would_restore` is for `dry_run=true`.

    `waiting_for_transaction` is that of a redrive.
    """

    restored: int
    dead_letters: list[LetterPlace]
    more: bool
    would_restore: int | None = None
    waiting_for_transaction: int | None = None


Answer = TypeVar("Answer", Redrives, Discards, Restores)
