"""The documents lead where they say, and the first page stays one that people read."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from apps.chassis.settings import Settings
from apps.consumer.app import create_app as create_consumer
from apps.consumer.consuming import batch, each
from apps.producer.app import create_app as create_producer
from contracts.person import PEOPLE, Person
from contracts.stream import Stream, variables_of
from tests.batches import batch_of

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/README.md")])
README_WORDS = 1_000
PAGE_WORDS = 500
SHORT_PAGES = [
    path
    for path in DOCUMENTS
    if path.parent.name == "how-to"
    and path.stem
    not in {
        "add-a-message",
        "answer-an-alert",
        "deploy",
        "forget",
        "operate",
        "protect",
        "replace-the-message",
        "write-a-handler",
    }
]
"""How-to pages for one task; the others are for a job of several."""
CURRENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]
"""All but the one that also names what is gone."""
DELETING = [Stream("people", Person, key=lambda person: person.id, deletes=True)]
OTHERS = ("FAULTS_", "POSTGRES_", "UV_")
"""How variables begin that are not read by the services."""
SETTINGS = {
    *Settings.__struct_encode_fields__,
    *variables_of(PEOPLE),
    *(name.replace("PEOPLE", "ORDERS") for name in variables_of(PEOPLE)),
    *("DATABASE_URL", "ORDER_DATABASE"),
}


@cache
def _files() -> list[str]:
    """Return the files of the project, but for those that begin with a point."""
    shown = [one for one in ROOT.iterdir() if not one.name.startswith(".")]
    found = [path.relative_to(ROOT) for one in shown for path in [one, *one.rglob("*.*")]]
    return [str(path) for path in found if not any(part.startswith(".") for part in path.parts)]


@cache
def _tests() -> set[str]:
    """Return the names of all tests, and of their files."""
    texts = {path.stem: path.read_text() for path in ROOT.glob("tests/**/test_*.py")}
    return {*texts, *(name for text in texts.values() for name in re.findall(r"def (test_\w+)", text))}


@cache
def _paths() -> dict[str, dict[str, Any]]:
    """Return what the documents of both services say of their calls, by the port of the service."""
    producer = create_producer(Settings(), streams=DELETING)
    consumer = create_consumer(Settings(), streams=DELETING, handlers={})
    return {port: app.openapi_schema.to_schema()["paths"] for port, app in (("8000", producer), ("8001", consumer))}


def _anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a document."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", document.read_text())
    broken = [
        f"{path}#{anchor}"
        for path, anchor in links
        if not (target := (document.parent / path) if path else document).exists()
        or (anchor and anchor not in _anchors(target))
    ]
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_and_test_that_a_document_names_exists(document: Path) -> None:
    if document.name == "CHANGELOG.md":
        return  # it names what is gone
    quoted = re.findall(r"`([^`\s]+)`", document.read_text())
    named = [one for one in quoted if re.fullmatch(r"\w[\w/.-]*\.(py|js|md|yaml|json|html|toml)", one)]
    assert [one for one in named if not any(file == one or file.endswith(f"/{one}") for file in _files())] == []
    assert [one for one in quoted if re.fullmatch(r"test_\w+", one) and one not in _tests()] == []


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text().split()) < README_WORDS


@pytest.mark.parametrize("page", SHORT_PAGES, ids=lambda path: path.stem)
def test_a_page_for_one_task_is_short(page: Path) -> None:
    assert len(page.read_text().split()) < PAGE_WORDS


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / path).resolve() for path in re.findall(r"\]\(([^)#]+\.md)", index.read_text())}
    assert {path.relative_to(ROOT) for path in set((ROOT / "docs").rglob("*.md")) - linked - {index}} == set()


def test_the_figures_of_the_readme_are_those_of_the_page_about_speed() -> None:
    shown = re.search(r"<!-- figures of bench -->\s(.*?)<!-- end", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    rows = [line.split("|")[2].strip() for line in shown[1].splitlines() if line.startswith("|")][2:]
    assert len(rows) == 5
    assert [row for row in rows if row not in (ROOT / "docs" / "speed.md").read_text()] == []


def test_the_quickstart_in_spanish_has_the_same_commands() -> None:
    english, spanish = (_commands(ROOT / name) for name in ("README.md", "README.es.md"))
    assert len(english) > 10
    assert spanish == english


def _commands(document: Path) -> list[str]:
    """Return the code of the quickstart without its comments, apart from pictures."""
    quickstart = document.read_text().partition("## What is guaranteed")[0]
    code = re.findall(r"^```\w+\n.*?^```$|`uv run [^`]+`", quickstart, re.DOTALL | re.MULTILINE)
    return [re.sub(r" +# .*", "", one) for one in code]


def _code(document: Path) -> str:
    return "\n".join(
        re.findall(r"^ *```(?:sh|nginx)\n.*?^ *```$|`[^`\n]+`", document.read_text(), re.DOTALL | re.MULTILINE)
    )


@pytest.mark.parametrize("document", CURRENT, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_that_a_document_names_exists(document: Path) -> None:
    recipes = set(re.findall(r"^([a-z][a-z-]*)(?: .*)?:(?!=)", (ROOT / "justfile").read_text(), re.MULTILINE))
    named = re.findall(r"\bjust ([a-z][a-z-]*)", _code(document))
    assert [one for one in named if one not in recipes] == []


@pytest.mark.parametrize("document", CURRENT, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_setting_that_a_document_sets_exists(document: Path) -> None:
    named = re.findall(r"(?:^|[\s`])([A-Z][A-Z0-9]*_[A-Z0-9_]+)=", _code(document))
    assert [one for one in named if one not in SETTINGS and not one.startswith(OTHERS)] == []


def _calls() -> Iterator[Any]:
    for document in CURRENT:
        for line in _code(document).splitlines():
            if found := re.search(r"curl\b.*?localhost:(800[01])(/[^\s\"]*)", line):
                method = re.search(r"-X ([A-Z]+)", line)
                sends = "--json" in line
                path = found[2].replace("orders", "people")
                yield pytest.param(
                    found[1], method[1] if method else "POST" if sends else "GET", path, id=f"{document.stem} {line}"
                )


@pytest.mark.parametrize(("port", "method", "target"), list(_calls()))
def test_every_call_that_a_document_makes_is_there_with_its_parameters(port: str, method: str, target: str) -> None:
    address = urlsplit(target)
    for path, operations in _paths()[port].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), address.path) and method.lower() in operations:
            known = {one["name"] for one in operations[method.lower()].get("parameters", [])}
            assert {name for name, _ in parse_qsl(address.query, keep_blank_values=True)} <= known
            return
    pytest.fail(f"there is no {method} {address.path}")


@pytest.mark.anyio
async def test_what_becomes_of_the_code_of_another_client_handles_each_record() -> None:
    text = (ROOT / "docs" / "how-to" / "move-from-another-client.md").read_text()
    blocks = re.findall(r"^```python\n# after\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    ada = Person("1", "Ada", 36, "a@example.com", "1", "12", "London", "LDN", "N1", "UK")
    for block in blocks:
        saved: list[Person] = []

        async def save(person: Person, saved: list[Person] = saved) -> None:
            saved.append(person)

        names: dict[str, Any] = {**vars(batch), **vars(each), "Person": Person}
        names["save"] = save if "await" in block else saved.append
        exec(block, names)  # noqa: S102 - our own document
        (handle,) = (one for name, one in names.items() if name.startswith("handle_"))
        result = handle(batch_of(PEOPLE, ada))
        if result is not None:
            await result
        assert saved == [ada]
