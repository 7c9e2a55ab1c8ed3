"""Applies a how-to of the documents to a copy of the project."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from services import ROOT

DIFF = re.compile(r"^```diff\n(.*?)^```$", re.DOTALL | re.MULTILINE)
REMOVAL = re.compile(r"^git rm -r (.*)$", re.MULTILINE)


def text_of(how_to: str) -> str:
    return (ROOT / "docs" / "how-to" / how_to).read_text()


def size_of(how_to: str) -> tuple[int, int]:
    """Return how many files the document adds or changes, and how many lines it adds."""
    lines = "".join(DIFF.findall(text_of(how_to))).splitlines()
    files = sum(line.startswith("+++ ") for line in lines)
    return files, sum(line.startswith("+") for line in lines) - files


def copy_with(how_to: str, folder: Path) -> Path:
    """Copy the project into a folder, as git knows it, and do there what the document says."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.split(b"\0")
    for name in filter(None, map(bytes.decode, names)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run(["git", "add", "."], cwd=folder, check=True)
    for removed in REMOVAL.findall(text_of(how_to)):
        subprocess.run(["git", "rm", "-rqf", *shlex.split(removed)], cwd=folder, check=True)
    if (known := ROOT / ".mypy_cache").exists():  # of the libraries, which take mypy a minute
        shutil.copytree(known, folder / ".mypy_cache")
    changes = "".join(DIFF.findall(text_of(how_to)))
    subprocess.run(["git", "apply", "-"], cwd=folder, check=True, input=changes.encode())
    return folder
