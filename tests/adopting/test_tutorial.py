"""The code of the tutorial does what the tutorial says, without Kafka: its own test is run."""

import inspect
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from copies import text_of
from services import ROOT

from tools.new_project import DIFF

pytestmark = pytest.mark.anyio
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
MODULES = dict(re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```$", TUTORIAL, re.DOTALL | re.MULTILINE))


def imported(name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Run code as a module that others can import until the test ends."""
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(code, name, "exec"), module.__dict__)  # noqa: S102 - our own document
    return module


async def test_its_handler_passes_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = DIFF.findall(text_of("add-a-message.md"))[0].splitlines()
    order = "\n".join(line[1:] for line in declared if line.startswith("+") and not line.startswith("+++"))
    imported("contracts.order", order, monkeypatch)
    assert MODULES.keys() == {"apps/consumer/orders_in_sqlite.py", "tests/in_memory/test_orders.py"}
    imported("apps.consumer.orders_in_sqlite", MODULES["apps/consumer/orders_in_sqlite.py"], monkeypatch)
    test = imported("test_orders", MODULES["tests/in_memory/test_orders.py"], monkeypatch)
    tests: list[Callable[..., Awaitable[Any]]] = [
        one for name, one in inspect.getmembers(test, inspect.iscoroutinefunction) if name.startswith("test_")
    ]
    assert len(tests) == 1
    await tests[0](tmp_path, monkeypatch)
