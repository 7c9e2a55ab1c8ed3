"""A project that was started from this one has a stream of its own in the place of people, and passes its checks."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from copies import size_of, take_types_along

from tools.new_project import GUIDE, new_project

MAX_FILES, MAX_LINES = 4, 120
KNOW_THE_STREAMS = [f"tests/unit/test_{name}.py" for name in ("command_line", "kubernetes", "schema")]
"""Tests of the streams that ship. Other unit tests bring their own, or start servers of a project that is installed."""
PEOPLE = re.compile(r"(?<!number_of_)people|\bPerson\b|PEOPLE")
"""Nothing that runs or is deployed names them; prose and tests speak of people as such."""
PYTHON = re.compile(r"^ *```python\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
SHIPPED = (
    "apps",
    "contracts",
    "deploy",
    "observability",
    "compose.yaml",
    "Dockerfile",
    "pyproject.toml",
    ".devcontainer",
)


def test_the_guide_that_it_applies_takes_at_most_four_files_and_a_hundred_and_twenty_lines() -> None:
    files, lines = size_of(GUIDE)
    assert files <= MAX_FILES
    assert lines <= MAX_LINES


def test_it_names_no_people_and_passes_its_own_checks(tmp_path: Path) -> None:
    project = tmp_path / "sensor-feed"
    new_project(project, "sensor-readings")
    shipped = ["git", "ls-files", "--", *SHIPPED, "justfile", "README.md", "requirements.lock"]
    files = subprocess.run(shipped, cwd=project, check=True, capture_output=True, text=True).stdout.split()
    assert [file for file in files if PEOPLE.search((project / file).read_text())] == []
    assert "SENSOR_READINGS_TOPIC=sensor-readings" in (project / "deploy/kubernetes/settings.env").read_text()
    take_types_along(project)
    given = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "NOT_AUDITED"))}
    environment = given | {"UV_PROJECT_ENVIRONMENT": sys.prefix, "UV_NO_SYNC": "1"}
    environment["PYTHONPATH"] = str(as_if_installed(project.name, tmp_path / "installed"))
    for command in (["just", "schema"], ["just", "lint"], ["python", "-m", "pytest", "-q", *KNOW_THE_STREAMS]):
        done = subprocess.run(
            ["uv", "run", *command], cwd=project, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
    assert subprocess.run(["git", "diff", "--stat"], cwd=project, check=True, capture_output=True).stdout == b""
    for page in project.glob("**/*.md"):
        for code in PYTHON.findall(page.read_text()):
            compile(dedent(code), page, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    message = project / "contracts/sensor_reading.py"
    message.write_text(message.read_text().replace("note: str | None = None", "celsius: float"))
    first = re.search(r"`uv run (just schema.*?)`: this once", (project / "README.md").read_text())
    assert first
    subprocess.run(["uv", "run", *first[1].split()], cwd=project, env=environment, check=True)


@pytest.mark.parametrize(
    ("name", "stream", "line"),
    [
        ("Feed", "orders", "FOLDER: expected a name of lower-case letters"),
        ("feed", "Orders", "STREAM: expected a name of lower-case letters"),
        ("feed", "streams", "STREAM: 'streams' would be declared in contracts/stream.py, which exists already"),
        ("feed", "class", "STREAM: 'class' would be declared in contracts/class.py, which Python cannot import"),
        (".", "orders", "FOLDER: .* is not empty"),
    ],
)
def test_a_name_that_it_cannot_have_is_refused_in_one_line(tmp_path: Path, name: str, stream: str, line: str) -> None:
    (tmp_path / "other").touch()
    with pytest.raises(ValueError, match=f"^{line}"):
        new_project(tmp_path / name, stream)


def as_if_installed(name: str, folder: Path) -> Path:
    """Return a folder in which a package of this name is found: the environment of the tests holds this one alone."""
    metadata = folder / f"{name.replace('-', '_')}-0.1.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    return folder
