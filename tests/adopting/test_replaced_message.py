"""Where another message is put in the place of `Person`, as `docs/how-to/replace-the-message.md` says, all is green."""

import os
import subprocess
import sys
from pathlib import Path

from copies import copy_with, size_of

HOW_TO = "replace-the-message.md"
MAX_FILES, MAX_LINES = 4, 120
CHECK = "lint" if "CI" in os.environ else "check"
"""In CI without the unit tests, which ran there for minutes already: its limit is 15 minutes."""


def test_it_takes_at_most_four_files_and_a_hundred_and_twenty_lines() -> None:
    files, lines = size_of(HOW_TO)
    assert files <= MAX_FILES
    assert lines <= MAX_LINES


def test_the_project_then_passes_its_own_checks(tmp_path: Path) -> None:
    project = copy_with(HOW_TO, tmp_path)
    given = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "NOT_AUDITED"))}
    environment = given | {"UV_PROJECT_ENVIRONMENT": sys.prefix, "UV_NO_SYNC": "1"}
    for recipe in ("schema", CHECK):
        done = subprocess.run(
            ["uv", "run", "just", recipe], cwd=project, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
