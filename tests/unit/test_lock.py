"""`uv run` installs what was tested: pyproject.toml has the pins of requirements.lock."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from tools.lock import LOCK, PROJECT, ROOT, pins_of, with_pins

WITH_DEV = {"compatibility", "local_postgres"}
"""Tools that `just schema` and `just postgres` run with the group `dev`."""


def test_the_constraints_of_the_project_are_the_pins_of_its_lock_file() -> None:
    pins = pins_of(Path(ROOT, LOCK).read_text())
    assert len(pins) > 100
    assert tomllib.loads(Path(ROOT, PROJECT).read_text())["tool"]["uv"]["constraint-dependencies"] == pins


def test_new_pins_take_the_place_of_those_before_and_change_nothing_else() -> None:
    project = Path(ROOT, PROJECT).read_text()
    pins = ["one==1.0", "two==2.0 ; python_full_version < '3.14'"]
    changed = with_pins(project, pins)
    expected = tomllib.loads(project)
    expected["tool"]["uv"]["constraint-dependencies"] = pins
    assert tomllib.loads(changed) == expected
    assert with_pins(changed, pins_of(Path(ROOT, LOCK).read_text())) == project


def test_what_uv_run_installs_by_itself_is_all_that_the_commands_import() -> None:
    project = tomllib.loads(Path(ROOT, PROJECT).read_text())
    asked_for = [*project["project"]["dependencies"], *project["dependency-groups"]["demo"]]
    installed = {re.split(r"[^A-Za-z0-9-]", one)[0] for one in asked_for}
    distributions = packages_distributions()
    others = set(sys.stdlib_module_names) | {"apps", "contracts", "examples", "tools"}
    for file in Path(ROOT, "tools").glob("*.py"):
        imported = {name for name in imports_of(file) if name not in others and file.stem not in WITH_DEV}
        assert [name for name in imported if not installed & {*distributions[name]}] == [], file.name


def imports_of(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
