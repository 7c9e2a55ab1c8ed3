"""The documents lead where they say, and the first page stays one that people read."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/README.md")])
README_WORDS = 1_800
FILES = [
    str(path.relative_to(ROOT)) for path in ROOT.rglob("*.*") if not any(part.startswith(".") for part in path.parts)
]
TESTS = {
    name
    for path in ROOT.glob("tests/**/test_*.py")
    for name in [path.stem, *re.findall(r"def (test_\w+)", path.read_text())]
}


def _anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a document."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
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
    assert [one for one in named if not any(file == one or file.endswith(f"/{one}") for file in FILES)] == []
    assert [one for one in quoted if re.fullmatch(r"test_\w+", one) and one not in TESTS] == []


def test_the_readme_is_read_in_ten_minutes() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= README_WORDS
