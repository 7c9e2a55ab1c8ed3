"""A file that is read again when it has changed, while the service runs."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

SETTLED_AFTER_S = 1.0
"""Seconds for which a file must stay unchanged before it is read again: until then it may be half written."""


class WatchedFile(Generic[T]):
    """The keys in a file that the setting `variable` names; an invalid file changes nothing and is logged.

    `read` may raise `OSError` and `ValueError`. `keys` is None until it has succeeded once.
    """

    def __init__(
        self, file: Path, variable: str, read: Callable[[], T], settled_after_s: float = SETTLED_AFTER_S
    ) -> None:
        self._file = file
        self._variable = variable
        self._read = read
        self._settled_after_s = settled_after_s
        self.keys: T | None = None
        self._seen: object = None
        self._changed: object = None
        self._changed_at = 0.0

    def look(self) -> bool:
        """Read the file if it has changed and settled; return whether it was read."""
        age_s = 0.0
        try:
            seen: object = (status := state_of(self._file))
            age_s = time.time() - status.changed_ns / 1e9
        except OSError as error:
            seen = str(error)
        if seen == self._seen or not (self._seen is None or self._has_settled(seen, age_s)):
            return False
        self._seen = seen
        try:
            self.keys = self._read()
        except (OSError, ValueError) as error:
            log.error("%s: the keys read before stay in use: %s", self._variable, error)  # noqa: TRY400 - one line says it
            return False
        return True

    def _has_settled(self, seen: object, age_s: float) -> bool:
        """Return whether the file has this state for long enough, by its own time or since it was first seen so."""
        now = time.monotonic()
        if seen != self._changed:
            self._changed, self._changed_at = seen, now
        return max(age_s, now - self._changed_at) >= self._settled_after_s


class FileState(NamedTuple):
    """What changes with the content of a file, or with its permissions: those may be why it was not read."""

    changed_ns: int
    status_changed_ns: int
    inode: int
    size: int


def state_of(file: Path) -> FileState:
    """Return the state of a file. Raises `OSError`."""
    status = file.stat()
    return FileState(status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)


def read_regular_file(file: Path) -> bytes:
    """Return the content of a file. Raises `ValueError` for a pipe or a directory: a pipe could block for ever."""
    if file.exists() and not file.is_file():
        raise ValueError("it is not a regular file")
    return file.read_bytes()
