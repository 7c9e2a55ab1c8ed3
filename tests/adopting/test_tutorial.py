"""The code of the tutorial, and that of the page about tests, does what they say, without Kafka."""

import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from copies import text_of
from msgspec import to_builtins
from services import ROOT

from apps.consumer.consuming.batch import Batch
from contracts.person import PEOPLE, Person
from tools.new_project import DIFF

pytestmark = pytest.mark.anyio
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
MODULES = dict(re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```$", TUTORIAL, re.DOTALL | re.MULTILINE))


def imported(
    name: str, code: str, monkeypatch: pytest.MonkeyPatch, names: Mapping[str, object] | None = None
) -> ModuleType:
    """Run code as a module that others can import until the test ends; `names` are there already."""
    module = ModuleType(name)
    module.__dict__.update(names or {})
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(code, name, "exec"), module.__dict__)  # noqa: S102 - our own document
    return module


async def test_its_handler_passes_its_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = DIFF.findall(text_of("add-a-message.md"))[0].splitlines()
    order = "\n".join(line[1:] for line in declared if line.startswith("+") and not line.startswith("+++"))
    imported("contracts.order", order, monkeypatch)
    assert MODULES.keys() == {"apps/consumer/orders_in_sqlite.py", "tests/in_memory/test_orders.py"}
    imported("apps.consumer.orders_in_sqlite", MODULES["apps/consumer/orders_in_sqlite.py"], monkeypatch)
    test = imported("test_orders", MODULES["tests/in_memory/test_orders.py"], monkeypatch)
    tests: list[Callable[..., Awaitable[Any]]] = [
        one for name, one in inspect.getmembers(test, inspect.iscoroutinefunction) if name.startswith("test_")
    ]
    assert len(tests) == 2
    for number, one in enumerate(tests):
        (folder := tmp_path / str(number)).mkdir()
        given = {"tmp_path": folder, "monkeypatch": monkeypatch}
        await one(**{name: given[name] for name in inspect.signature(one).parameters})


async def handle_people(batch: Batch[Person]) -> None:
    for record in batch:
        if record.value.age < 18:
            batch.reject(record, "not of age")


async def test_the_tests_of_the_page_about_tests_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    adult, minor = (Person(str(age), "Ada", age, "a@x.example", "1", "1", "Oslo", "NO", "1", "NO") for age in (36, 9))
    names = {"PEOPLE": PEOPLE, "handle_people": handle_people, "adult": adult, "minor": minor}
    names["person"] = to_builtins(adult)
    blocks = re.findall(r"^```python\n(.*?)^```$", text_of("test-without-a-broker.md"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        test = imported(f"test_of_page_{number}", block, monkeypatch, names)
        await next(one for name, one in vars(test).items() if name.startswith("test_"))()
