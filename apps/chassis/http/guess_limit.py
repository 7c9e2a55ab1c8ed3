"""Slows the guessing of keys, but of those that are in use at the same address: these are not locked out."""

import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import TypeVar

BURST = 50
"""Wrong keys that an address may send at once."""
SECONDS_PER_GUESS = 1.0
REMEMBERED = 1_024
"""Addresses, keys, and wrong sessions that are remembered; of more, the least recently used are forgotten."""
PLACES_OF_A_KEY = 16
"""Addresses that are remembered of each key: so no key, used at many, has others forgotten."""

K = TypeVar("K")
V = TypeVar("V")


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
        self._used: dict[str, dict[str, None]] = {}
        self._wrong_sessions: dict[tuple[str, str], None] = {}

    def blocks(self, address: str, name: str | None) -> bool:
        """Return whether an address may not use a key now; `name` is None for an unknown key."""
        place = _place_of(address)
        is_slowed = self._paid_off.get(place, 0.0) - self._now() > self._burst_s
        return is_slowed and (name is None or place not in self._used.get(name, {}))

    def note_wrong(self, address: str, session: str | None = None) -> None:
        """Count a wrong key of an address, but a `session` once: a page sends it again, and that is no guess."""
        place = _place_of(address)
        if session is not None:
            is_known = (place, session) in self._wrong_sessions
            _put_last(self._wrong_sessions, (place, session), None)
            if is_known:
                return
        paid_off = max(self._paid_off.get(place, 0.0), self._now()) + self._guess_s
        _put_last(self._paid_off, place, paid_off)

    def note_used(self, address: str, name: str) -> None:
        """Remember that an address used a key."""
        places = self._used.get(name, {})
        _put_last(places, _place_of(address), None, PLACES_OF_A_KEY)
        _put_last(self._used, name, places)


def _put_last(known: dict[K, V], key: K, value: V, most: int = REMEMBERED) -> None:
    """Remember something as the last that was used, and forget the first of too many."""
    known.pop(key, None)
    known[key] = value
    if len(known) > most:
        del known[next(iter(known))]


def _place_of(address: str) -> str:
    """Return an address, or the network of an IPv6 address: a host has 2^64 of those."""
    if ":" not in address:
        return address
    given = ip_address(address.partition("%")[0])
    if not isinstance(given, IPv6Address):
        return address
    return str(given.ipv4_mapped or ":".join(given.exploded.split(":")[:4]))
