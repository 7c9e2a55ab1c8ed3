"""Slows the guessing of keys, but of those that are in use at the same address: these are not locked out."""

import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

BURST = 50
"""Wrong keys that an address may send at once."""
SECONDS_PER_GUESS = 1.0
REMEMBERED = 1_024
"""Addresses, and pairs of one and a key or a session, that are remembered; of more, the oldest are forgotten."""


class GuessLimit:
    """Decides whether an address may try another key.

    One that has sent too many wrong keys may only use the keys that it has used before, until it has waited. So callers
    behind the same proxy as a guesser are still answered. A right guess of another key is not noticed; one of a key
    that is in use there is, however fast they come: only a random key is safe from that.
    Each of several `workers` takes its part of the guesses, and remembers the keys that were used with it.
    """

    def __init__(self, burst: int = BURST, now: Callable[[], float] = time.monotonic, *, workers: int = 1) -> None:
        self._guess_s = SECONDS_PER_GUESS * workers
        self._burst_s = burst * SECONDS_PER_GUESS
        self._now = now
        self._paid_off: dict[str, float] = {}
        self._used: dict[tuple[str, str], None] = {}
        self._wrong_sessions: dict[tuple[str, str], None] = {}

    def blocks(self, address: str, name: str | None) -> bool:
        """Return whether an address may not use a key now; `name` is None for an unknown key."""
        place = _place_of(address)
        return self._paid_off.get(place, 0.0) - self._now() > self._burst_s and (place, name) not in self._used

    def note_wrong(self, address: str, session: str | None = None) -> None:
        """Count a wrong key of an address, but a `session` once: a page sends it again, and that is no guess."""
        place = _place_of(address)
        if session is not None and not _remember(self._wrong_sessions, (place, session)):
            return
        paid_off = max(self._paid_off.pop(place, 0.0), self._now()) + self._guess_s
        self._paid_off[place] = paid_off
        if len(self._paid_off) > REMEMBERED:
            del self._paid_off[next(iter(self._paid_off))]

    def note_used(self, address: str, name: str) -> None:
        """Remember that an address used a key."""
        _remember(self._used, (_place_of(address), name))


def _remember(known: dict[tuple[str, str], None], new: tuple[str, str]) -> bool:
    """Remember a pair, and forget the oldest of too many; return whether it was not known."""
    if new in known:
        return False
    known[new] = None
    if len(known) > REMEMBERED:
        del known[next(iter(known))]
    return True


def _place_of(address: str) -> str:
    """Return an address, or the network of an IPv6 address: a host has 2^64 of those."""
    if ":" not in address:
        return address
    given = ip_address(address.partition("%")[0])
    if not isinstance(given, IPv6Address):
        return address
    return str(given.ipv4_mapped or ":".join(given.exploded.split(":")[:4]))
