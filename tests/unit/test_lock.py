"""`uv run` installs what was tested: pyproject.toml has the pins of requirements.lock."""

import tomllib
from pathlib import Path

from tools.lock import LOCK, PROJECT, ROOT, pins_of, with_pins


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
