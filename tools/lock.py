"""Writes requirements.lock from pyproject.toml, and its pins into pyproject.toml: `python -m tools.lock [--upgrade]`.

By these constraints `uv run` installs what was tested, without a lock file of uv, which would name the index of one
machine. They are left out while the next ones are found, or they would hold on to themselves.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
PROJECT, LOCK = "pyproject.toml", "requirements.lock"
WANTED = ("--extra", "tracing", "--extra", "oidc", "--group", "dev", "--group", "demo")
FORMAT = ("--universal", "--python-version", "3.11", "--generate-hashes", "--quiet")
PINS = re.compile(r"(?m)^constraint-dependencies = \[\n(?:.*\n)*?\]\n")


def pins_of(lock: str) -> list[str]:
    """Return each pin of a lock file, with its marker."""
    return re.findall(r"(?m)^([a-z0-9]\S*==.+?) \\$", lock)


def with_pins(project: str, pins: Sequence[str]) -> str:
    """Return a pyproject.toml with these pins in the place of those that it has."""
    block = "".join(f'    "{pin}",\n' for pin in pins)
    return PINS.sub(lambda _: f"constraint-dependencies = [\n{block}]\n", project)


def main() -> None:
    """Write both files, or none where no versions fit together."""
    project = (ROOT / PROJECT).read_text("utf-8")
    with TemporaryDirectory() as folder:
        Path(folder, PROJECT).write_text(with_pins(project, ()), "utf-8")
        shutil.copy(ROOT / LOCK, folder)  # versions that still fit stay
        named = ("--custom-compile-command", "uv run just lock", "--output-file", LOCK, *sys.argv[1:])
        done = subprocess.run(["uv", "pip", "compile", PROJECT, *WANTED, *FORMAT, *named], cwd=folder, check=False)  # noqa: S607 - wherever it is installed
        if done.returncode:
            sys.exit(done.returncode)
        lock = Path(folder, LOCK).read_text("utf-8")
    (ROOT / LOCK).write_text(lock, "utf-8")
    (ROOT / PROJECT).write_text(with_pins(project, pins_of(lock)), "utf-8")


if __name__ == "__main__":
    main()
