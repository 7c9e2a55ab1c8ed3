"""The files that editors and forges look for are valid, and what they name exists."""

import json
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema.validators import validator_for

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("dependabot", [GITHUB / "dependabot.yml"]),
        ("github-issue-forms", [GITHUB / "ISSUE_TEMPLATE/bug.yml"]),
        ("github-issue-config", [GITHUB / "ISSUE_TEMPLATE/config.yml"]),
        ("github-workflows", sorted((GITHUB / "workflows").iterdir())),
    ],
)
def test_the_files_of_the_forge_follow_its_schemas(schema: str, files: list[Path]) -> None:
    rules = get_builtin_schema(f"vendor.{schema}")
    for file in files:
        content = msgspec.yaml.decode(file.read_bytes())
        # to YAML 1.1 the key `on` of a workflow is a boolean
        validator_for(rules)(rules).validate({"on" if key is True else key: content[key] for key in content})


def test_a_release_signs_the_very_image_that_was_scanned_and_no_other() -> None:
    steps = msgspec.yaml.decode((GITHUB / "workflows/release.yml").read_bytes())["jobs"]["images"]["steps"]
    scan = next(step for step in steps if step.get("uses", "").startswith("anchore/scan-action@"))
    sign = steps[-1]
    assert scan["with"]["image"].endswith("@${{ steps.built.outputs.digest }}")
    assert sign["run"] == 'cosign sign --yes "$IMAGE@$DIGEST"'
    assert sign["env"]["DIGEST"] == "${{ steps.built.outputs.digest }}"
    assert "if" not in sign
    assert not {"if", "continue-on-error"} & scan.keys()


def test_an_editor_debugs_modules_that_exist() -> None:
    launch = json.loads((ROOT / ".vscode/launch.json").read_text())
    known = [one["name"] for one in launch["configurations"]]
    assert all(find_spec(one["module"]) for one in launch["configurations"])
    assert all(name in known for compound in launch["compounds"] for name in compound["configurations"])


def test_a_commit_is_checked_by_the_command_of_the_project() -> None:
    hooks = msgspec.yaml.decode((ROOT / ".pre-commit-config.yaml").read_bytes())["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == ["uv run just lint"]


def test_a_development_container_forwards_the_ports_of_both_services() -> None:
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert container["forwardPorts"] == [8000, 8001]


def test_the_example_of_owners_names_paths_that_exist() -> None:
    lines = (GITHUB / "CODEOWNERS.example").read_text().splitlines()
    paths = [line.split()[0] for line in lines if line.startswith("/")]
    assert paths
    assert [path for path in paths if not (ROOT / path.lstrip("/")).exists()] == []
