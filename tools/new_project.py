"""Start a project of your own from this one: `python -m tools.new_project FOLDER [STREAM]`, with a stream of your own.

It is named as its folder. People, and what is there to show them, are left out: docs/how-to/replace-the-message.md is
applied, and then the names are changed. A record has a key and a note until you give it its own fields.
"""

import keyword
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from contracts import PROJECT

ROOT = Path(__file__).parents[1]
GUIDE = "replace-the-message.md"

DIFF = re.compile(r"^```diff\n(.*?)^```$", re.DOTALL | re.MULTILINE)
REMOVAL = re.compile(r"^git rm -r (.*)$", re.MULTILINE)
CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
IDENTIFIER = re.compile(
    r"(?<=save_)people|(?<=agent\()people|people(?=_[a-z]| = )|(?<=apps/consumer/)people|(?<=UPDATE )people"
)
"""People in names that cannot have a hyphen."""
ADDING = "add-a-message.md"
EXAMPLE = re.compile(
    r"ORDERS|orders|\bOrder\b|\bAn order\b|(?<=contracts[./])order\b|\border(?=_id\b|: |\.order_id)|\bord-1"
)
INSTEAD = {"ORDERS": "INVOICES", "orders": "invoices", "Order": "Invoice", "An order": "An invoice"}
INSTEAD |= {"order": "invoice", "ord-1": "inv-1"}
"""The example of the guide that adds a message, where the project's own are orders."""
OF_PEOPLE = (
    "README.es.md",
    f"docs/how-to/{GUIDE}",
    "docs/page-*.png",
    "docs/speed.*",
    "docs/tutorial*",
    "tools/demo_database.py",
    "tools/local_postgres.py",
    "tools/new_project.py",
)
"""Files that only people need, besides those that the guide removes."""
RECIPES = ("bench", "create-people", "demo-database", "new-project", "postgres")
OF_IMAGES = re.compile(
    r"Dockerfile|docs/how-to/deploy\.md|"
    r"\.github/workflows/release\.yml|deploy/kubernetes/(consumer|producer)\.yaml|tests/unit/test_kubernetes\.py"
)
README = """# {title}

`{stream}` over Kafka: a producer (port 8000) and a consumer (port 8001), each a Litestar service on FastStream.

```sh
uv run just demo     # Kafka and both services, with ten {stream}; Ctrl-C ends all of it
uv run just check    # before every commit: formatting, lint, types and the fast tests
uv run just test     # also on a real Kafka and in a browser
```

1. Give a record its fields in `contracts/{module}.py`, then `uv run just schema --break`: this once, because no record
   has the starter's fields yet. Later use `uv run just schema`, which refuses what running services could not read.
2. Do your work in `apps/consumer/handlers.py`: [how to write a handler](docs/how-to/write-a-handler.md).
3. `git commit`: all files are staged.
4. [Deploy](docs/how-to/deploy.md) and [operate](docs/how-to/operate.md) it.

[Add a message](docs/how-to/add-a-message.md) adds another stream. [Contributing](CONTRIBUTING.md) lists all commands.
Where a document shows the fields of a person, read your own.
"""
MESSAGE = '''"""The stream of {stream}."""

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.stream import Stream


class {kind}(msgspec.Struct, frozen=True, gc=False):
    """A record. A field that is added later needs a default, or running services could not read the records."""

    {module}_id: Annotated[str, Meta(min_length=1, max_length=64, examples=["{module}-1"])]
    note: str | None = None


{constant} = Stream("{stream}", {kind}, key=lambda one: one.{module}_id)
'''
EDITS: dict[str, tuple[tuple[str, str], ...]] = {
    "CONTRIBUTING.md": (
        (r"\| `uv run just bench` .*\n", ""),
        (r" · adopting · shipping", " · shipping"),
        (r"examples/ .*\n", ""),
        (
            r"deploy/ observability/ benchmarks/ .*\n",
            "deploy/ observability/    Kubernetes manifests; alerts and dashboard\n",
        ),
        (r"docs/           tutorial, ", "docs/           "),
    ),
    "docs/README.md": (
        (r", then the \[tutorial\].* \|", " |"),
        (r", \[replace `Person`\].* \|", " |"),
        (r"\[speed\]\(speed\.md\) ·\n", ""),
    ),
    "docs/explanation/guarantees.md": ((r"\(\[examples\]", "([how]"),),
    "docs/how-to/add-a-message.md": ((r"`Order` next to `Person`", "`Order` next to yours"),),
    "docs/how-to/handle-dead-letters.md": ((r"!\[.*\]\(.*\)\n\n", ""),),
    "docs/how-to/keep-records-in-a-database.md": ((r"(?s)\[examples/postgres\.py\].*?(?=How it works)", ""),),
    "docs/how-to/protect.md": ((r"Of a person, .* are:", "For example:"),),
    "docs/how-to/upgrade.md": ((r"3\. `uv run just bench`.*\n", ""),),
    "docs/reference/calls.md": ((r"A person is (?s:.*?)\. All fields are required.*\n.*the record's key\. ", ""),),
    "tests/faults/README.md": ((r"\| (in the examples|a person generated in advance) .*\n", ""),),
}
"""Passages about what a new project lacks, as patterns, and what replaces them."""
CHANGELOG = "# Changelog\n\n## [0.1.0] - Unreleased\n"


Names = dict[str, str]
"""What the new project and its stream are called, by the names of the templates."""


def names_of(project: str, stream: str) -> Names:
    """Return all names; a record is named in the singular where that is plain."""
    plural = stream.replace("-", "_")
    module = re.sub(r"(?<=[^s])s$", "", re.sub(r"ies$", "y", plural))
    names = {"project": project, "title": project.replace("-", " ").capitalize(), "stream": stream, "module": module}
    return names | {"kind": module.title().replace("_", ""), "plural": plural, "constant": plural.upper()}


def copy_project(folder: Path) -> None:
    """Copy the project into a folder, as git knows it."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.split(b"\0")  # noqa: S607 - wherever it is installed
    for name in filter(None, map(bytes.decode, names)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    _git(folder, "init", "--quiet")
    _git(folder, "add", ".")


def apply(guide: str, folder: Path) -> None:
    """Do in a copy of the project what a how-to says."""
    text = (ROOT / "docs" / "how-to" / guide).read_text("utf-8")
    for removed in REMOVAL.findall(text):
        _git(folder, "rm", "-rqf", *shlex.split(removed))
    _git(folder, "apply", "-", given="".join(DIFF.findall(text)))


def edited(text: str, edits: Sequence[tuple[str, str]]) -> str:
    """Return the text with each passage replaced. Raises `LookupError` for one that is not there any more."""
    for passage, replacement in edits:
        text, found = re.subn(passage, replacement, text)
        if not found:
            raise LookupError(passage)
    return text


def new_project(folder: Path, stream: str) -> None:
    """Write the project into a folder. Raises `ValueError` for a name that it cannot have."""
    names = names_of(folder.name, stream)
    _check(folder, names)
    folder.mkdir(parents=True, exist_ok=True)
    copy_project(folder)
    apply(GUIDE, folder)
    (folder / "contracts/order.py").unlink()
    (folder / f"contracts/{names['module']}.py").write_text(MESSAGE.format(**names), "utf-8")
    for name in ("contracts/__init__.py", "apps/consumer/handlers.py"):
        (folder / name).write_text(_without_orders((folder / name).read_text("utf-8"), names), "utf-8")
    for pattern in OF_PEOPLE:
        for file in folder.glob(pattern):
            _git(folder, "rm", "-rqf", str(file.relative_to(folder)))
    for name, edits in EDITS.items():
        (folder / name).write_text(edited((folder / name).read_text("utf-8"), edits), "utf-8")
    (folder / "README.md").write_text(README.format(**names), "utf-8")
    (folder / "CHANGELOG.md").write_text(CHANGELOG, "utf-8")
    for file in filter(Path.is_file, _files(folder)):
        _rename(file, file.relative_to(folder), names)
    for command in (("ruff", "check", "--quiet", "--select", "I", "--fix"), ("ruff", "format", "--quiet")):
        subprocess.run([sys.executable, "-m", *command], cwd=folder, check=True)
    for module in ("tools.schema", "tools.scaling"):
        subprocess.run([sys.executable, "-m", module], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    _git(folder, "add", ".")


def _check(folder: Path, names: Names) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"FOLDER: {folder} is not empty")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", names["project"]):
        raise ValueError(f"FOLDER: expected a name of lower-case letters, digits and '-', got {names['project']!r}")
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", names["stream"]):
        raise ValueError(f"STREAM: expected a name of lower-case letters, digits, '-' and '_', got {names['stream']!r}")
    module = f"contracts/{names['module']}.py"
    if keyword.iskeyword(names["module"]):
        raise ValueError(f"STREAM: {names['stream']!r} would be declared in {module}, which Python cannot import")
    if (ROOT / module).exists():
        raise ValueError(f"STREAM: {names['stream']!r} would be declared in {module}, which exists already")


def _rename(file: Path, name: Path, names: Names) -> None:
    """Change the names in a file; the licence and pictures stay as they are."""
    if file.suffix in {".png", ".svg"} or name.name == "LICENSE":
        return
    text = before = file.read_text("utf-8")
    if OF_IMAGES.fullmatch(name.as_posix()):
        text = re.sub(r"\bpeople-(?!over)", f"{names['project']}-", text)
    for old, new in ((PROJECT, names["project"]), ("People over Kafka", names["title"])):
        text = text.replace(old, new).replace(old.replace("-", "_"), new.replace("-", "_"))
    if name.suffix == ".md":
        if name.name == ADDING and names["constant"] == "ORDERS":
            text = EXAMPLE.sub(lambda found: INSTEAD[found[0]], text)
        text = CODE.sub(lambda code: _without_people(code[0], names), text)
        text = LINK.sub(lambda link: link[0] if (file.parent / link[2]).exists() else link[1], text)
    elif name.suffix != ".py":
        text = _without_people(text, names)
    if name.name == "justfile":
        text = "\n\n".join(
            block for block in text.split("\n\n") if not re.search(rf"(?m)^({'|'.join(RECIPES)})\b", block)
        )
    if name.name == "pyproject.toml":
        text = re.sub(r', "tests/(adopting|examples)"', "", text)
    if text != before:
        file.write_text(text, "utf-8")


def _without_orders(code: str, names: Names) -> str:
    for old, new in (("ORDERS", names["constant"]), ("orders", names["plural"]), ("Order", names["kind"])):
        code = re.sub(rf"(?<![A-Za-z]){old}(?![a-z])", new, code)
    return code.replace("contracts.order ", f"contracts.{names['module']} ")


def _without_people(code: str, names: Names) -> str:
    code = code.replace("PEOPLE", names["constant"]).replace("handle_people", f"handle_{names['plural']}")
    code = re.sub(r"contracts([./])person\b", rf"contracts\1{names['module']}", code)
    code = IDENTIFIER.sub(names["plural"], code)
    code = re.sub(r"(?<!number_of_)people", names["stream"], code)
    return re.sub(r"\bPerson\b", names["kind"], code)


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in _git(folder, "ls-files").splitlines()] + [*(folder / "contracts").glob("*.py")]


def _git(folder: Path, *arguments: str, given: str | None = None) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, input=given, text=True, stdout=subprocess.PIPE)  # noqa: S607 - wherever it is installed
    return done.stdout


def main() -> None:
    """Write the project, and say what to do next."""
    folder = Path(sys.argv[1]).resolve()
    try:
        new_project(folder, *(sys.argv[2:] or ("orders",)))
    except ValueError as error:
        sys.exit(str(error))
    print(f"{folder} is yours: see its README.md. All of it is staged; `git commit` when you like")


if __name__ == "__main__":
    main()
