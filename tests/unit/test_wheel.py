import re
import shutil
import subprocess
import sys
import tomllib
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ("apps", "contracts")
MOST_BYTES = 1_000_000


def built(root: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    return ZipFile(built(ROOT, tmp_path_factory.mktemp("wheel")))


def test_the_same_sources_make_the_same_wheel_whenever_and_wherever_it_is_built(wheel: ZipFile, tmp_path: Path) -> None:
    for name in SHIPPED:
        shutil.copytree(ROOT / name, tmp_path / name, copy_function=shutil.copyfile)  # with other times and modes
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    assert wheel.filename is not None
    assert built(tmp_path, tmp_path / "dist").read_bytes() == Path(wheel.filename).read_bytes()


def test_the_wheel_holds_every_file_of_the_services_and_nothing_else(wheel: ZipFile) -> None:
    files = [each for folder in SHIPPED for each in (ROOT / folder).rglob("*") if each.is_file()]
    expected = {each.relative_to(ROOT).as_posix() for each in files if "__pycache__" not in each.parts}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_the_wheel_says_its_version_and_carries_its_licence(wheel: ZipFile) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = f"people_over_kafka-{project['version']}.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["Version"] == project["version"]
    assert metadata["License-Expression"] == project["license"]
    assert wheel.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_the_wheel_is_small_typed_and_refused_by_every_public_index(wheel: ZipFile) -> None:
    assert Path(str(wheel.filename)).stat().st_size < MOST_BYTES
    assert {f"{package}/py.typed" for package in SHIPPED} <= set(wheel.namelist())
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    described = Parser().parsestr(wheel.read(metadata).decode())
    assert "Private :: Do Not Upload" in described.get_all("Classifier", ())
    assert described.get_all("Provides-Extra") == ["oidc", "tracing"]


def test_the_changelog_begins_with_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"(?m)^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text())
    assert headings[0] == version
