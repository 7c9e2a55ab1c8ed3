"""API keys: each has a name; a file of them is read anew whenever it changes."""

import hmac
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

log = logging.getLogger(__name__)

HEADER = "X-API-Key"
DEFAULT_NAME = "default"


class Keys:
    """The keys that are accepted: those given, and those of a file, which may change while the service runs."""

    def __init__(self, given: Mapping[str, str], file: Path | None) -> None:
        self._given = given
        self._file = file
        self._of_file: Mapping[str, str] = {}
        self._seen: object = None

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
        """Return the name of a key, None for one that is not accepted. Which one is near it is not to be measured."""
        if self._file is not None:
            self._look_at(self._file)
        found = None
        for name, key in (*self._given.items(), *self._of_file.items()):
            if hmac.compare_digest(key.encode(), offered.encode("utf-8", "surrogateescape")):
                found = name
        return found

    def _look_at(self, file: Path) -> None:
        """Read the file if it is another than it was; one that cannot be read leaves the keys as they are."""
        try:
            status = file.stat()
            seen: object = (status.st_mtime_ns, status.st_ino, status.st_size)
        except OSError as error:
            seen = str(error)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._of_file = read_keys(file.read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError) as error:
            log.error("the file of API keys cannot be read; those read before stay in use: %s", error)  # noqa: TRY400 - one line says it
        else:
            names = sorted({**self._given, **self._of_file})
            log.log(logging.INFO if names else logging.WARNING, "API keys in use: %s", ", ".join(names) or "none")


def read_keys(lines: Iterable[str]) -> dict[str, str]:
    """Return keys by name: each line is `name:key`, or a key alone, which is named `default`.

    Empty lines and those that begin with `#` are passed over. Raises `ValueError`, which tells no key, for two of one
    name and for one without name or key.
    """
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, key = (part.strip() for part in line.partition(":"))
        if not colon:
            name, key = DEFAULT_NAME, name
        if not name or not key:
            raise ValueError(f"key {number} has no name or is empty")
        if name in keys:
            raise ValueError(f"two keys have the name {name}")
        keys[name] = key
    return keys
