"""API keys: each has a name, which may be logged, and roles; a file of keys is read again when it changes."""

import hmac
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from apps.chassis.http.callers import Caller
from apps.chassis.http.roles import Role
from apps.chassis.http.watched_file import SETTLED_AFTER_S, WatchedFile, read_regular_file

log = logging.getLogger(__name__)

HEADER = "X-API-Key"
DEFAULT_NAME = "default"
MIN_LENGTH = 16
"""Shortest key, in characters: 16 random ones cannot be guessed over HTTP."""
NAME = re.compile(r"[A-Za-z0-9._-]{1,32}")
KEY = re.compile(r"(?!#)[!-+\--~]+")
"""Printable ASCII that a header keeps unchanged: no spaces, no comma (between keys), no `#` (comments)."""
WRONG_OPTIONS = (
    "is followed by something else than roles=send,read,read:sensitive,operate (some of them) and expires=2027-01-31"
)
HOW_TO_MAKE_ONE = "make one with: openssl rand -hex 24"


@dataclass(frozen=True)
class ApiKey(Caller):
    """A key, which names its caller."""

    secret: str = field(kw_only=True, repr=False)


class Keys:
    """The keys that are accepted: those given, and those of a file, which may change while the service runs.

    With `reads` or `tokens`, or once any key is given roles, reading needs a key too; with `tokens`, bearer tokens are
    accepted as well as keys.
    """

    def __init__(
        self,
        given: Mapping[str, ApiKey],
        file: Path | None,
        settled_after_s: float = SETTLED_AFTER_S,
        *,
        reads: bool = False,
        tokens: bool = False,
    ) -> None:
        self._reads = reads or tokens
        self._tokens = tokens
        self._given = given
        self._file = file
        self._watched = WatchedFile(file, "API_KEY_FILE", self.read_file, settled_after_s) if file else None

    @property
    def current(self) -> Mapping[str, ApiKey]:
        """The keys by name, expired ones too."""
        if self._watched is None:
            return self._given
        was_read = self._watched.look()
        current = {**self._given, **(self._watched.keys or {})}
        if was_read:
            log.info(
                "API keys in use: %s", ", ".join(f"{one.name} ({', '.join(one.roles)})" for one in current.values())
            )
        return current

    @property
    def needed(self) -> bool:
        """Whether a key or a token is needed at all."""
        return bool(self._given) or self._file is not None or self._tokens

    @property
    def needed_to_read(self) -> bool:
        """Whether reading needs a key."""
        return self._reads or any(key.given_roles is not None for key in self.current.values())

    def find(self, offered: str) -> ApiKey | None:
        """Return the key with a secret, None without any. Compared in constant time."""
        found = None
        for key in self.current.values():
            if hmac.compare_digest(key.secret.encode(), offered.encode("utf-8", "surrogateescape")):
                found = key
        return found

    def read_file(self) -> dict[str, ApiKey]:
        """Return the keys of the file, if there is one. Raises as `read_key_file` does."""
        return read_key_file(self._file, self._given) if self._file else {}


def read_key_file(file: Path, given: Mapping[str, ApiKey]) -> dict[str, ApiKey]:
    """Return the keys of a file, one a line, by name; `given` are those of the environment.

    Lines that begin with `#` are skipped. Raises `OSError`, and `ValueError` as `read_keys` and `read_regular_file` do.
    """
    try:
        lines = read_regular_file(file).decode("utf-8-sig").split("\n")  # `splitlines` also ends a comment elsewhere
    except UnicodeDecodeError:
        raise ValueError("the file is not UTF-8 text") from None
    return read_keys(("" if line.strip().startswith("#") else line for line in lines), given)


def read_keys(lines: Iterable[str], given: Mapping[str, ApiKey] = MappingProxyType({})) -> dict[str, ApiKey]:
    """Return keys by name: each line is `name:key`, or a key without a colon, which is named `default`.

    Behind the key a line may have `roles=read,operate` and `expires=2027-01-31`. Empty lines are skipped. Raises
    `ValueError` when there is no key, and for a key that is weak, ambiguous, cannot be sent in a header, or is one of
    `given`. The message quotes nothing: even a name may be a part of a secret.
    """
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, colon, rest = (part.strip() for part in line.partition(":"))
        if not colon or any("=" in word for word in name.split()[1:]):  # a colon of its options
            name, rest = DEFAULT_NAME, line
        secret, *options = rest.split() or [""]
        if fault := _find_fault(name, secret, {**given, **keys}.values()):
            raise ValueError(f"key {number} {fault}")
        try:
            keys[name] = ApiKey(name, *_read_options(options), secret=secret)
        except ValueError:
            raise ValueError(f"key {number} {WRONG_OPTIONS}; {HOW_TO_MAKE_ONE}") from None
    if not keys:
        raise ValueError(f"no key is given; {HOW_TO_MAKE_ONE}")
    return keys


def _read_options(options: Iterable[str]) -> tuple[frozenset[Role] | None, datetime | None]:
    """Return the roles of a line and when its key expires. Raises `ValueError`."""
    given: dict[str, str] = {}
    for name, equals, value in (option.partition("=") for option in options):
        if name not in {"roles", "expires"} or not equals or name in given:
            raise ValueError
        given[name] = value
    roles = frozenset(map(Role, given["roles"].split(","))) if "roles" in given else None
    expires = datetime.fromisoformat(given["expires"]) if "expires" in given else None
    return roles, expires if expires is None or expires.tzinfo else expires.replace(tzinfo=UTC)


def _find_fault(name: str, secret: str, others: Iterable[ApiKey]) -> str | None:
    checks = (
        (
            not NAME.fullmatch(name),
            "has no proper name before its colon: write name:key, the name of 1 to 32 letters, digits, . _ -",
        ),
        (
            len(secret) < MIN_LENGTH,
            f"is too weak: expected {MIN_LENGTH} characters or more after name:, got {len(secret)}; {HOW_TO_MAKE_ONE}",
        ),
        (
            not KEY.fullmatch(secret),
            f"begins with # or holds a comma or a character that is not ASCII; {HOW_TO_MAKE_ONE}",
        ),
        (
            name in {key.name for key in others},
            "has the same name as one in API_KEY or one before; give each its own, as name:key",
        ),
        (
            secret in {key.secret for key in others},
            "is in API_KEY too, or the same as one before, under another name; leave one out",
        ),
    )
    return next((fault for wrong, fault in checks if wrong), None)
