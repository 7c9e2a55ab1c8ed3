"""A Kafka for the tests that need one, and what the services said when such a test fails."""

import atexit
import fcntl
import gc
import logging
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

import hypothesis
import pytest
from confidential import content_in
from fork_server import start_fork_server

from tools.kafka_distribution import distribution
from tools.local_kafka import LocalKafka, LocalKafkaError, learn_to_start, reachable

if TYPE_CHECKING:  # tests without a browser or a Kafka need no time for them
    from litestar import Litestar
    from litestar.testing import TestClient
    from playwright.sync_api import Browser
    from services import Pipeline

# jsonschema would build 38 grammars of it in each worker, for formats (`iri`) that no schema of ours has
sys.modules["rfc3987_syntax"] = ModuleType("rfc3987_syntax")
hypothesis.settings.register_profile(
    "no deadline", deadline=None
)  # a busy machine is slow, and no test is wrong for it
hypothesis.settings.load_profile("no deadline")

LOGS = pytest.StashKey[Path]()
NO_PART_OF_A_PAGE = (
    *("WebUIOmniboxPopup", "WebUIOmniboxAimPopup"),  # what the address bar would suggest: a quarter of all work
    # what Playwright leaves out by the same option, of which the last one counts
    *("AvoidUnnecessaryBeforeUnloadCheckSync", "DestroyProfileOnBrowserClose", "HttpsUpgrades", "LensOverlay"),
    *("HttpsFirstBalancedModeAutoEnable", "MediaRouter", "PaintHolding", "ThirdPartyStoragePartitioning"),
    *("AvoidCorsURLLoaderRestartOnRedirect", "OptimizationHints", "NetworkTimeServiceQuerying", "PreconnectToSearch"),
    "AimEnabled",
)
"""Features of Chromium that the tests do without."""
HARDLY_A_BROWSER = [
    "--no-sandbox",
    "--disable-gpu",
    "--in-process-gpu",  # what draws instead takes no process of its own
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-site-isolation-trials",  # a process less for each page
    f"--disable-features={','.join(NO_PART_OF_A_PAGE)}",
    # names whose owner lets them lead to this machine; no others lead anywhere
    (
        "--host-resolver-rules=MAP *.example 127.0.0.1, MAP rebound 127.0.0.1, MAP * ~NOTFOUND, "
        "EXCLUDE localhost, EXCLUDE 127.0.0.1"
    ),
]
WITHOUT_KAFKA = ("tests/in_memory", "tests/unit")
"""Folders of tests that need no Kafka."""
LONGEST_FIRST = (
    "test_consumer",
    "test_security",
    "test_dead_letters",
    "test_reading",
    "test_one_truth",
    "test_live_page",
    "test_page_truth",
    "test_producer",
    "test_local_kafka",
    "test_clients",
    "test_outages",
    "test_control",
    "test_starting_and_ending",
    "test_patience",
    "test_shared_dead_letters",
    "test_processes",
    "test_limits",
    "test_http_callers",
    "test_schemathesis",
)
"""Files that a worker begins with, or the last one would work alone for minutes."""
LAST_LINES = 60
"""Lines of a service's log that a failed test shows."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, as the services do."""
    return "asyncio"


@pytest.fixture
def no_stacks(caplog: pytest.LogCaptureFixture) -> None:
    """Log errors alone: the stacks of thousands of failing calls take most of a test's time."""
    caplog.set_level(logging.ERROR)


@pytest.fixture
def process_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore after the test what `set_up_logging` replaces in the process."""
    loggers = [logging.getLogger(name) for name in (None, *logging.root.manager.loggerDict)]
    levels = [logger.level for logger in loggers]
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    for owner, name in ((threading, "excepthook"), (sys, "unraisablehook"), (warnings, "showwarning")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def room(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run together with the tests of other workers; a test marked `alone` runs while they wait.

    The door is passed one by one, so that a test that waits to be alone is not overtaken for ever.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    alone = request.node.get_closest_marker("alone") is not None
    folder = tmp_path_factory.getbasetemp().parent
    with (folder / "door").open("w") as door, (folder / "room").open("w") as inside:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


@pytest.fixture(scope="session")
def bootstrap_servers() -> Iterator[str]:
    """The Kafka of KAFKA_BOOTSTRAP_SERVERS (localhost:9092 by default) if it answers, else one of our own."""
    given = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")
    if reachable(given):
        yield given
        return
    with ExitStack() as stack:
        try:
            kafka = stack.enter_context(LocalKafka())
        except LocalKafkaError as error:
            without_kafka(error)
        yield ",".join(kafka.bootstrap_servers)


@pytest.fixture(scope="session")
def startable_kafka() -> None:
    """For tests that start a Kafka of their own: what it takes is there."""
    try:
        distribution()
    except LocalKafkaError as error:
        without_kafka(error)


@pytest.fixture(scope="session")
def logs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the logs of the services under test; none of them quotes a record."""
    folder = tmp_path_factory.mktemp("logs")
    request.config.stash[LOGS] = folder
    yield folder
    found = {
        log.name: found
        for log in sorted(folder.glob("*.log"))
        if (found := content_in(log.read_text("utf-8", "replace")))
    }
    assert not found, "logs quote records"


@pytest.fixture
def pipeline(bootstrap_servers: str, logs: Path) -> "Iterator[Pipeline]":
    """A topic, its dead letters and a group for one test alone."""
    from services import Pipeline  # noqa: PLC0415 - tests without a Kafka need no time for it

    with Pipeline(bootstrap_servers, logs) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def shared(bootstrap_servers: str, logs: Path) -> "Iterator[Pipeline]":
    """A topic, its dead letters and a group for the tests of a module."""
    from services import Pipeline  # noqa: PLC0415 - likewise

    with Pipeline(bootstrap_servers, logs) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def clients() -> "Iterator[dict[str, TestClient[Litestar]]]":
    """Both services, with no Kafka, for which they do not wait."""
    from litestar.testing import TestClient  # noqa: PLC0415 - likewise

    from apps.chassis.settings import Settings  # noqa: PLC0415 - likewise
    from tests.event_services import create_consumer, create_producer  # noqa: PLC0415 - likewise
    from tests.fakes import NO_KAFKA  # noqa: PLC0415 - likewise

    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1")
    producer, consumer = create_producer(settings, kafka=NO_KAFKA), create_consumer(settings, kafka=NO_KAFKA)
    with TestClient(producer) as of_producer, TestClient(consumer) as of_consumer:
        yield {"producer": of_producer, "consumer": of_consumer}


@pytest.fixture
def producer(clients: "dict[str, TestClient[Litestar]]") -> "TestClient[Litestar]":
    """A producer with no Kafka, where a module has no other."""
    return clients["producer"]


@pytest.fixture
def consumer(clients: "dict[str, TestClient[Litestar]]") -> "TestClient[Litestar]":
    """A consumer with no Kafka, where a module has no other."""
    return clients["consumer"]


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser of the system."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        reason = "no chromium is installed: `apt-get install chromium`, or your system's way"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="module")
def browser(chromium: str, site: object) -> "Iterator[Browser]":
    """One browser for a module; it is closed before its services (`site`) are, which then run event loops."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - likewise

    assert site
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=HARDLY_A_BROWSER)
        yield browser
        browser.close()


def without_kafka(error: LocalKafkaError) -> NoReturn:
    """Skip the test on a laptop that cannot run a Kafka; where CI runs, that must not go unnoticed."""
    reason = f"no Kafka answers and none can be started: {error}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Start for all workers what starts services, and a Kafka unless one answers; or only tests run that need none."""
    if all(argument.startswith(WITHOUT_KAFKA) for argument in config.args):
        return
    if sys.platform == "linux":
        start_fork_server()
    if reachable(os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")):
        return
    stack = ExitStack()
    config.add_cleanup(stack.close)
    with suppress(LocalKafkaError):  # the tests that need it say why there is none
        learn_to_start()
        os.environ["KAFKA_BOOTSTRAP_SERVERS"] = ",".join(stack.enter_context(LocalKafka()).bootstrap_servers)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave modules and tests to no garbage collection, of which each would look at all of them for half a second.

    From then on garbage is collected as seldom as in the services, and no more at the end of the process.
    """
    gc.disable()
    atexit.register(gc.freeze)
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let workers begin with the files that take longest, and end with the unit tests and those for which all wait."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {name: place for place, name in enumerate(LONGEST_FIRST)}

        def place_of(item: pytest.Item) -> int:
            if item.get_closest_marker("alone"):
                return len(places) + 2
            return places.get(item.path.stem, len(places) + ("unit" in item.path.parts))

        items.sort(key=place_of)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show, below a failure, the logs that were written to meanwhile."""
    report = yield
    if report.failed and (folder := item.config.stash.get(LOGS, None)):
        for log in sorted(folder.glob("*.log")):
            if log.stat().st_mtime >= call.start - 1:
                said = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
                report.sections.append((f"log of {log.stem}", said))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Repeat, just above the closing line, that the packages were not audited."""
    if found := os.environ.get("NOT_AUDITED"):
        terminalreporter.section("NOT AUDITED", yellow=True)
        terminalreporter.write(Path(found).read_text())
