"""What may import what: `docs/` and the packages' docstrings say it in words."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for folder in ("apps", "contracts")
    for file in (ROOT / folder).rglob("*.py")
}
FORBIDDEN = {
    "contracts": ["apps"],
    "apps.chassis": ["apps.producer", "apps.consumer"],
    "apps.producer": ["apps.consumer"],
    "apps.consumer": ["apps.producer"],
    "apps.producer.publishing": ["apps.producer.routes", "apps.producer.app", "apps.producer.home"],
    "apps.consumer.consuming": [
        f"apps.consumer.{other}" for other in ("operating", "redriving", "browsing", "page", "app", "stream_consumer")
    ],
    "apps.consumer.browsing": ["apps.consumer.operating", "apps.consumer.redriving", "apps.consumer.page"],
    "apps.consumer.operating": ["apps.consumer.browsing", "apps.consumer.redriving", "apps.consumer.page"],
}


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@cache
def imports_of(module: str) -> frozenset[str]:
    """Return the modules of the project that a module imports, also inside its functions."""
    return frozenset(_imports_of(module))


def _imports_of(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            of_package = [f"{node.module}.{name.name}" for name in node.names]
            yield from (name for name in of_package if name in MODULES)
            if node.module in MODULES and not all(name in MODULES for name in of_package):
                yield node.module


@pytest.mark.parametrize(("package", "others"), FORBIDDEN.items(), ids=FORBIDDEN)
def test_a_package_imports_nothing_that_depends_on_it(package: str, others: list[str]) -> None:
    wrong = [
        f"{module} imports {imported}"
        for module in MODULES
        if is_within(module, package)
        for imported in imports_of(module)
        if any(is_within(imported, other) for other in others)
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: imports_of(module) - {module} for module in MODULES}
    while free := [module for module, imported in graph.items() if not imported & graph.keys()]:
        for module in free:
            del graph[module]
    assert sorted(graph) == []


def test_what_any_service_needs_knows_no_stream() -> None:
    messages = {*imports_of("contracts")} - {"contracts.stream"}
    assert messages
    chassis = [module for module in MODULES if is_within(module, "apps.chassis")]
    assert [module for module in chassis if messages & imports_of(module)] == []
