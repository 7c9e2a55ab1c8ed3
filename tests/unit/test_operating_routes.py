"""An operator action on several streams is taken on all of them at once, and its answer hides none of them."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaConnectionError
from samples import LONG

from apps.consumer.operating.control import Control, NotNow
from apps.consumer.operating.routes import at_once

pytestmark = pytest.mark.anyio

STREAMS = cast("Any", {name: SimpleNamespace(control=name) for name in ("events", "orders")})


async def test_an_action_on_one_stream_waits_for_no_other_stream() -> None:
    """A seek may wait 5 s for a handler: one after the other, those of three streams took longer than a call may."""
    begun, may_end = list[str](), asyncio.Event()

    async def act(name: str, _: Control) -> str:
        begun.append(name)
        if len(begun) == len(STREAMS):
            may_end.set()
        await may_end.wait()
        return name

    assert await asyncio.wait_for(at_once(STREAMS, act), LONG) == {"events": "events", "orders": "orders"}


@pytest.mark.parametrize("error", [NotNow("it is stopped"), KafkaConnectionError("no broker"), TimeoutError()])
async def test_an_error_of_one_stream_says_for_which_others_the_action_was_done(error: Exception) -> None:
    async def act(name: str, _: Control) -> None:
        if name == "orders":
            raise error

    with pytest.raises(NotNow, match=r"^orders: .* \(done for events\)$"):
        await at_once(STREAMS, act)


async def test_an_error_of_all_streams_is_raised_as_it_is() -> None:
    async def act(*_: object) -> None:
        raise KafkaConnectionError("no broker")

    with pytest.raises(KafkaConnectionError):
        await at_once(STREAMS, act)
