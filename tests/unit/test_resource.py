import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import pytest
from samples import until
from streams import AT_ONCE, Handler, Stream

from apps.chassis.kafka.clients import client_options
from apps.chassis.kafka.kafka import REAL
from apps.chassis.observability.traces import Traces
from apps.chassis.setting_reading import read_own_settings
from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import Settings
from apps.consumer.app import create_app
from apps.consumer.consuming import batch
from apps.consumer.consuming.publish import Publisher
from apps.consumer.consuming.resource import HandlerResource, handler_resource, resource
from tests.event import EVENTS, Event

pytestmark = pytest.mark.anyio


class OwnSettings(Settings, kw_only=True, frozen=True):
    database_url: str = "sqlite.db"
    pool_size: int = 4


@asynccontextmanager
async def running(made: HandlerResource) -> AsyncIterator[Stream]:
    """Keep a resource open as the consumer does; give a stream with its handler."""
    async with made.open():
        keeping = asyncio.create_task(made.keep_open())
        try:
            yield Stream(made.handle, resource=made)
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])


def a_publisher() -> Publisher:
    return Publisher(Settings(), client_options(Settings(), "consumer"), Traces(), REAL)


def made_of(open_handler: Any, **options: Any) -> HandlerResource:  # noqa: ANN401 - of `HandlerResource`
    return HandlerResource(None, lambda: open_handler(Settings()), "events", AT_ONCE, **options)


async def test_what_hangs_while_it_is_opened_is_opened_again() -> None:
    handler, openings = Handler(), []

    @asynccontextmanager
    async def opening(_: Settings) -> AsyncIterator[batch.Handler[Event]]:
        openings.append(1)
        if len(openings) < 3:
            await asyncio.sleep(3_600)
        yield handler

    async with running(made_of(opening, open_timeout_s=0.1)) as stream:
        stream.add("a")
        await stream.consume()
    assert handler.done == ["a"]
    assert (len(openings), stream.letters) == (3, [])


async def test_what_cannot_be_opened_has_failed_since_its_first_failure() -> None:
    seen: list[float | None] = []

    @asynccontextmanager
    async def opening(_: Settings) -> AsyncIterator[batch.Handler[Event]]:
        seen.append(made.failing_since)
        if len(seen) < 4:
            raise OSError("no database")
        yield Handler()

    made = made_of(opening)
    async with running(made):
        await until(lambda: made.is_open)
        before, first, *later = seen
        assert before is None
        assert later == [first, first] != [None, None]
        assert made.failing_since is None
        assert made.retry_at is not None
        assert made.retry_at > (first or 0.0)


async def test_while_it_is_opened_again_a_stop_and_a_start_do_not_make_all_seem_well() -> None:
    """Status and health said `running` and 200 for the 30 s that an opening may take, while all records waited."""
    may_open, openings = asyncio.Event(), []

    @asynccontextmanager
    async def opening(_: Settings) -> AsyncIterator[batch.Handler[Event]]:
        openings.append(1)
        if len(openings) > 1:
            await may_open.wait()
        yield Handler(lambda _: len(openings) == 1)

    async with running(made_of(opening, give_way_s=0.0)) as stream:
        stream.add("a")
        await until(lambda: stream.consumption.resource.is_open)
        await stream.consume(turns=5)
        assert len(openings) == 2
        stream.consumption.resume(accept=False)
        assert stream.consumption.retrying == "retrying: the resource of the handler is being opened"
        may_open.set()
        await until(lambda: stream.consumption.resource.is_open)
        assert stream.consumption.retrying is None


@pytest.mark.parametrize("stubborn", [False, True])
async def test_what_hangs_while_it_is_closed_is_left_behind(
    stubborn: bool,  # noqa: FBT001 - pytest gives it by name
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("apps.consumer.consuming.resource.CANCEL_TIMEOUT_S", 0.01)
    released, generation = asyncio.Event(), 0
    handlers = [Handler(lambda _: True), Handler()]

    @asynccontextmanager
    async def opening(_: Settings) -> AsyncIterator[batch.Handler[Event]]:
        nonlocal generation
        generation += 1
        yield handlers[min(generation, 2) - 1]
        while stubborn and not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue
        await released.wait()

    with caplog.at_level(logging.ERROR):
        async with running(made_of(opening, close_timeout_s=0.01)) as stream:
            stream.add("a")
            await stream.consume()
    released.set()
    assert handlers[1].done == ["a"]
    assert "the resource of the handler of events does not close" in caplog.text
    assert ("is left behind" in caplog.text) == stubborn


async def test_a_batch_that_waits_for_its_resource_is_given_up_for_a_stop_and_lets_the_consumer_poll() -> None:
    handler, may_open = Handler(), asyncio.Event()

    @asynccontextmanager
    async def opening(_: Settings) -> AsyncIterator[batch.Handler[Event]]:
        await may_open.wait()
        yield handler

    async with running(made_of(opening)) as stream:
        stream.add("a")
        turn = asyncio.create_task(stream.turn())
        await asyncio.sleep(0)
        stream.consumption.abandonment.ask("stop")
        await asyncio.wait_for(turn, 5)
        assert stream.committed == {0: 0}
        stream.consumption.abandonment.withdraw("stop")
        may_open.set()
        await stream.consume()
    assert handler.done == ["a"]
    async with running(made_of(opening, give_way_s=0.0)) as stream:
        may_open.clear()
        stream.add("b")
        await asyncio.wait_for(stream.turn(), 5)
        assert stream.committed == {0: 0}


async def test_whatever_a_resource_raises_ends_nothing_else() -> None:
    handler, raised = Handler(), iter([SystemExit(3), asyncio.CancelledError(), KeyboardInterrupt(), ValueError()])

    @asynccontextmanager
    async def opening(_: Settings) -> AsyncIterator[batch.Handler[Event]]:
        for error in raised:
            raise error
        yield handler

    async with running(made_of(opening)) as stream:
        stream.add("a")
        await stream.consume()
    assert handler.done == ["a"]


async def test_a_context_is_left_by_the_task_that_entered_it() -> None:
    tasks: list[object] = []

    @asynccontextmanager
    async def opening(_: Settings) -> AsyncIterator[batch.Handler[Event]]:
        tasks.append(asyncio.current_task())
        try:
            yield Handler()
        finally:
            tasks.append(asyncio.current_task())

    async with running(made_of(opening)) as stream:
        stream.add("a")
        await stream.consume()
    entered, left = tasks
    assert entered is left


async def test_a_context_that_yields_no_handler_is_reported() -> None:
    @asynccontextmanager
    async def opening(_: Settings) -> AsyncIterator[Any]:
        yield None

    made = made_of(opening)
    async with running(made):
        await until(lambda: made.error is not None)
        assert made.error == "TypeError: expected the context to yield a handler, got NoneType"


@pytest.mark.parametrize("trouble", ["yields no handler", "hangs", "ends by itself"])
async def test_what_is_not_open_is_not_said_to_have_raised_when_it_was_closed(
    trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def opening(_: Settings) -> AsyncIterator[Any]:
        if trouble == "hangs":
            await asyncio.Event().wait()
        if trouble == "ends by itself":
            asyncio.get_running_loop().call_soon(cast(asyncio.Task[Any], asyncio.current_task()).cancel)
        yield Handler() if trouble == "ends by itself" else None

    made = made_of(opening, open_timeout_s=0.1)
    async with running(made):
        await until(lambda: made.error is not None)
    assert "is not open, retrying" in caplog.text
    assert "raised when it was closed" not in caplog.text


def test_a_bare_generator_is_refused_where_it_is_declared() -> None:
    async def people_handler(_: Settings) -> AsyncIterator[Any]:
        yield None

    with pytest.raises(TypeError, match=r"people_handler: expected an @asynccontextmanager"):
        resource(people_handler)  # type: ignore[arg-type]  # the mistake itself


async def test_a_resource_is_given_its_own_settings_and_all_others() -> None:
    given: list[OwnSettings] = []

    @asynccontextmanager
    async def opening(settings: OwnSettings) -> AsyncIterator[batch.Handler[Event]]:
        given.append(settings)
        yield Handler()

    environment = {"DATABASE_URL": " postgres://localhost/people ", "POOL_SIZE": "7", "WINDOW_SIZE": "5"}
    settings = Settings(window_size=20)
    made = handler_resource(resource(opening, OwnSettings), settings, environment, "events", AT_ONCE, a_publisher())
    async with running(made):
        await until(lambda: given != [])
    assert (given[0].database_url, given[0].pool_size, given[0].window_size) == ("postgres://localhost/people", 7, 20)


def test_own_settings_have_their_defaults() -> None:
    assert read_own_settings(OwnSettings, Settings(), {"DATABASE_URL": " "}) == OwnSettings()
    settings = Settings(cors_origins="http://localhost:1")
    assert read_own_settings(OwnSettings, settings, {}) == OwnSettings(cors_origins="http://localhost:1")
    assert read_own_settings(OwnSettings, OwnSettings(pool_size=9), {"POOL_SIZE": "5"}).pool_size == 9


def test_a_setting_of_ones_own_may_be_required() -> None:
    class Needed(Settings, kw_only=True, frozen=True):
        database_url: str
        pool_size: int

    given = {"DATABASE_URL": "here", "POOL_SIZE": "5"}
    assert read_own_settings(Needed, Settings(), given).pool_size == 5
    with pytest.raises(WrongSetting, match=r"^POOL_SIZE: is missing"):
        read_own_settings(Needed, Settings(), {"DATABASE_URL": "here"})
    with pytest.raises(WrongSetting, match=r"^POOL_SIZE: expected"):
        read_own_settings(Needed, Settings(), given | {"POOL_SIZE": "1e1"})


def test_a_wrong_setting_of_ones_own_stops_the_start_with_a_line_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOL_SIZE", "many")
    with pytest.raises(WrongSetting, match=r"^POOL_SIZE: expected .*, got 'many'$"):
        create_app(Settings(), streams=[EVENTS], handlers={EVENTS: resource(lambda _: AsyncExitStack(), OwnSettings)})  # type: ignore[arg-type, return-value]  # never opened


def test_what_is_ones_own_may_be_secret_and_is_not_shown() -> None:
    assert "pool" not in repr(OwnSettings(database_url="postgres://me:secret@localhost")).replace("pool_size='***'", "")
    assert "secret" not in repr(OwnSettings(database_url="postgres://me:secret@localhost"))
