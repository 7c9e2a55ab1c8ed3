"""Checks at start that the private parts of libraries look as they did when the modules of this package were written.

A module of this package is a PROTECTION or an ACCELERATOR. A protection is always on: when its check fails, the start
fails with one line. An accelerator only saves time: when its check fails, or with `ACCELERATORS=off`, it is given up
with one line in the log, and the service works by public means alone.

Each module lists what it reaches for in `REACHES`, one line for each: `module:name` must exist,
`module:name(parameter, ...)` must have these parameters, and the code of `module:name uses attribute, ...` must read or
set these attributes.
"""

import inspect
import re
import sys
from collections.abc import Iterable
from functools import reduce
from importlib import import_module
from importlib.metadata import version
from platform import python_version
from typing import Any

REACH = re.compile(r"(?P<module>[\w.]+):(?P<path>[\w.]+)(\((?P<parameters>.*)\))?( uses (?P<attributes>.*))?")


class UnexpectedLibrary(Exception):
    """A library is not as this service needs it; the message is one line."""


def check(reaches: Iterable[str]) -> None:
    """Raise `UnexpectedLibrary` for the first reach that does not find what it needs."""
    for reach in reaches:
        found = re.fullmatch(REACH, reach)
        if found is None:
            raise ValueError(f"{reach!r}: expected module:name, module:name(parameter, ...) or module:name uses ...")
        if not _is_as_expected(**found.groupdict()):
            raise UnexpectedLibrary(f"{_library_of(found['module'])}: expected {reach}: install the pinned version")


def part_of(module: str, path: str) -> Any:  # noqa: ANN401 - anything
    """Return what has a dotted name in a module. Raises `AttributeError` or `ImportError`."""
    return reduce(getattr, path.split("."), import_module(module))


def _is_as_expected(module: str, path: str, parameters: str | None, attributes: str | None) -> bool:
    try:
        part = part_of(module, path)
        wanted = set(filter(None, (parameters or "").split(", ")))
        used = set(filter(None, (attributes or "").split(", ")))
        return (
            part is not None
            and (parameters is None or wanted <= inspect.signature(part).parameters.keys())
            and (attributes is None or used <= set(inspect.unwrap(part).__code__.co_names))
        )
    except (AttributeError, ImportError, TypeError, ValueError):
        return False


def _library_of(module: str) -> str:
    name = module.partition(".")[0]
    if name in sys.stdlib_module_names:
        return f"Python {python_version()}"
    return f"{name} {version(name)}" if name != "apps" else f"aiokafka {version('aiokafka')}"
