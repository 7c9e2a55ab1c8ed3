"""API keys: each has a name, which may be logged; a file of keys is read again when it changes."""

import hmac
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

log = logging.getLogger(__name__)

HEADER = "X-API-Key"
DEFAULT_NAME = "default"
MIN_LENGTH = 16
"""Shortest key, in characters: 16 random ones cannot be guessed over HTTP."""
NAME = re.compile(r"[A-Za-z0-9._-]{1,32}")
KEY = re.compile(r"(?!#)[!-+\--~]+")
"""Printable ASCII that a header keeps unchanged: no spaces, no comma (between keys), no `#` (comments)."""
SETTLED_AFTER_S = 1.0
"""Seconds for which a file must stay unchanged before it is read again: until then it may be half written."""
HOW_TO_MAKE_ONE = "make one with: openssl rand -hex 24"


class Keys:
    """The keys that are accepted: those given, and those of a file, which may change while the service runs."""

    def __init__(self, given: Mapping[str, str], file: Path | None, settled_after_s: float = SETTLED_AFTER_S) -> None:
        self._settled_after_s = settled_after_s
        self._given = given
        self._file = file
        self._of_file: Mapping[str, str] = {}
        self._seen: object = None
        self._changed: object = None
        self._changed_at = 0.0

    def __iter__(self) -> Iterator[str]:
        """Go through the keys."""
        if self._file is not None:
            self._look_at(self._file)
        return iter((*self._given.values(), *self._of_file.values()))

    @property
    def needed(self) -> bool:
        """Whether a key is needed at all."""
        return bool(self._given) or self._file is not None

    def name_of(self, offered: str) -> str | None:
        """Return the name of a key, None for one that is not accepted. Compared in constant time."""
        if self._file is not None:
            self._look_at(self._file)
        found = None
        for name, key in (*self._given.items(), *self._of_file.items()):
            if hmac.compare_digest(key.encode(), offered.encode("utf-8", "surrogateescape")):
                found = name
        return found

    def read_file(self) -> dict[str, str]:
        """Return the keys of the file, if there is one. Raises as `read_key_file` does."""
        return read_key_file(self._file, self._given) if self._file else {}

    def _look_at(self, file: Path) -> None:
        """Read the file if it has changed and settled; keep the current keys if the file is invalid."""
        age_s = 0.0
        try:
            status = file.stat()
            seen: object = (status.st_mtime_ns, status.st_ino, status.st_size)
            age_s = time.time() - status.st_mtime
        except OSError as error:
            seen = str(error)
        if seen == self._seen or not (self._seen is None or self._has_settled(seen, age_s)):
            return
        self._seen = seen
        try:
            self._of_file = self.read_file()
        except (OSError, ValueError) as error:
            log.error("API_KEY_FILE: the keys read before stay in use: %s", error)  # noqa: TRY400 - one line says it
        else:
            log.info("API keys in use: %s", ", ".join(sorted({**self._given, **self._of_file})))

    def _has_settled(self, seen: object, age_s: float) -> bool:
        """Return whether the file has this state for long enough, by its own time or since it was first seen so."""
        now = time.monotonic()
        if seen != self._changed:
            self._changed, self._changed_at = seen, now
        return max(age_s, now - self._changed_at) >= self._settled_after_s


def read_key_file(file: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Return the keys of a file, one a line, by name; `given` are those of the environment.

    Lines that begin with `#` are skipped. Raises `OSError`, `ValueError` as `read_keys` does, and `ValueError` for a
    pipe or a directory: reading a pipe could block for ever.
    """
    if file.exists() and not file.is_file():
        raise ValueError("it is not a regular file")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError("the file is not UTF-8 text") from None
    return read_keys(("" if line.strip().startswith("#") else line for line in lines), given)


def read_keys(lines: Iterable[str], given: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return keys by name: each line is `name:key`, or a key without a colon, which is named `default`.

    Empty lines are skipped. Raises `ValueError` when there is no key, and for a key that is weak, ambiguous, cannot be
    sent in a header, or is one of `given`. The message quotes nothing: even a name may be a part of a secret.
    """
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, colon, key = (part.strip() for part in line.partition(":"))
        if not colon:
            name, key = DEFAULT_NAME, name
        if fault := _find_fault(name, key, {**given, **keys}):
            raise ValueError(f"key {number} {fault}")
        keys[name] = key
    if not keys:
        raise ValueError(f"no key is given; {HOW_TO_MAKE_ONE}")
    return keys


def _find_fault(name: str, key: str, others: Mapping[str, str]) -> str | None:
    checks = (
        (
            not NAME.fullmatch(name),
            "has no proper name before its colon: write name:key, the name of 1 to 32 letters, digits, . _ -",
        ),
        (
            len(key) < MIN_LENGTH,
            f"is too weak: expected {MIN_LENGTH} characters or more after name:, got {len(key)}; {HOW_TO_MAKE_ONE}",
        ),
        (
            not KEY.fullmatch(key),
            f"begins with # or holds a space, a comma or a character that is not ASCII; {HOW_TO_MAKE_ONE}",
        ),
        (name in others, "has the same name as one in API_KEY or one before; give each its own, as name:key"),
        (key in others.values(), "is in API_KEY too, or the same as one before, under another name; leave one out"),
    )
    return next((fault for wrong, fault in checks if wrong), None)
