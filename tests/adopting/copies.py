"""Applies a how-to of the documents to a copy of the project."""

import shutil
from pathlib import Path

from services import ROOT

from tools.new_project import DIFF, apply, copy_project


def text_of(how_to: str) -> str:
    return (ROOT / "docs" / "how-to" / how_to).read_text()


def size_of(how_to: str) -> tuple[int, int]:
    """Return how many files the document adds or changes, and how many lines it adds."""
    lines = "".join(DIFF.findall(text_of(how_to))).splitlines()
    files = sum(line.startswith("+++ ") for line in lines)
    return files, sum(line.startswith("+") for line in lines) - files


def copy_with(how_to: str, folder: Path) -> Path:
    """Copy the project into a folder, as git knows it, and do there what the document says."""
    copy_project(folder)
    take_types_along(folder)
    apply(how_to, folder)
    return folder


def take_types_along(folder: Path) -> None:
    """Copy what mypy knows of the libraries, which takes it a minute."""
    if (known := ROOT / ".mypy_cache").exists():
        shutil.copytree(known, folder / ".mypy_cache")
