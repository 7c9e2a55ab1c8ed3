"""What a key without `read:sensitive` sees: nothing sensitive, wherever a secret stands. Kafka is in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from httpx import Response
from litestar.connection import Request
from litestar.routes import HTTPRoute
from memory import Memory
from pair import Pair, pair

from apps.chassis.http.authorization import Access
from apps.chassis.http.roles import Role
from apps.chassis.setting_reading import read_settings
from apps.consumer.consuming.batch import Batch, Reject
from contracts.sensitive import Sensitive
from contracts.stream import Stream

pytestmark = pytest.mark.anyio

SECRET = "Sesame"  # noqa: S105 - what no answer may show
Secret = Annotated[str, Sensitive()]
READ, SEE, ALL, OPERATE = "a-key-that-reads", "a-key-that-sees-all", "a-key-without-roles", "a-key-that-operates"
BLIND = "a-key-that-lacks-read"
KEYS = (
    f"r:{READ} roles=read\ns:{SEE} roles=read,read:sensitive\na:{ALL}\no:{OPERATE} roles=operate\n"
    f"b:{BLIND} roles=operate,read:sensitive\n"
)


class Home(msgspec.Struct):
    street: Secret


class Guest(msgspec.Struct):
    """A record with a secret wherever one can be marked."""

    number: Secret
    mood: str
    home: Home
    homes: list[Home | None]
    phones: dict[str, Secret]
    room: Literal["small", "large"]
    email: Secret | None = None


class Plain(msgspec.Struct):
    id: str


GUESTS: Stream[Guest] = Stream("guests", Guest, key=lambda guest: guest.number)
PLAIN: Stream[Plain] = Stream("plain", Plain, key=lambda plain: plain.id)


def guest(mood: str) -> dict[str, Any]:
    home = {"street": f"{SECRET} Street"}
    numbered = {"number": f"{SECRET}-{mood}", "mood": mood, "email": f"y{SECRET}@example.com"}
    return {**numbered, "home": home, "homes": [home, None], "phones": {"mobile": SECRET}, "room": "small"}


class Handler:
    """Fails for guests that are angry, and rejects those that are sad; both errors quote the guest."""

    failing = True

    async def __call__(self, batch: Batch[Any]) -> None:
        for record in batch:
            mood = getattr(record.value, "mood", "")
            if mood == "sad":
                batch.reject(record, f"sad: {record.value}")
            if mood == "angry" and self.failing:
                raise ValueError(f"angry: {record.value}")


class Rejecting(Handler):
    async def __call__(self, batch: Batch[Any]) -> None:
        raise Reject(f"no: {batch.values}")


def calling(key: str) -> dict[str, str]:
    return {"X-API-Key": key}


@asynccontextmanager
async def hotel(folder: Path, keys: str = KEYS, handler: Handler | None = None) -> AsyncIterator[Pair]:
    """Run the pair with keys of each kind; `Pair.until` uses the one without roles."""
    file = folder / "keys"
    file.write_text(keys)
    memory, settings = Memory(), read_settings({"API_KEY_FILE": str(file)} if keys else {})
    async with pair({GUESTS: handler or Handler(), PLAIN: handler or Handler()}, memory, settings=settings) as p:
        p.producer.headers.update(calling(ALL))
        p.consumer.headers.update(calling(ALL))
        yield p


async def send(p: Pair, *moods: str, stream: str = "guests") -> None:
    for mood in moods:
        body = guest(mood) if stream == "guests" else {"id": mood}
        assert (await p.producer.post(f"/producers/{stream}", json=body)).status_code == 201


async def publish(p: Pair, value: bytes, key: bytes = SECRET.encode(), stream: str = "guests") -> None:
    """Write a record as another producer would: with a secret in a header, too."""
    await p.broker.publish(value, topic=stream, key=key, partition=0, headers={"whose": SECRET})


async def get(p: Pair, path: str, by: str, **parameters: str) -> Response:
    return await p.consumer.get(path, params=parameters, headers=calling(by))


async def tail_of(p: Pair, key: str, events: int, query: str = "") -> str:
    """Return some events of the live tail, from the beginning of the topic."""
    sent, enough = bytearray(), asyncio.Event()

    async def receive() -> Any:  # noqa: ANN401 - ASGI's
        await enough.wait()
        return {"type": "http.disconnect"}

    async def keep(message: Any) -> None:  # noqa: ANN401 - ASGI's
        sent.extend(message.get("body", b""))
        if sent.count(b"\ndata: ") >= events or message.get("status", 200) != 200:
            enough.set()

    beginning = "_".join(f"{partition}-0" for partition in range(6))
    path = "/consumers/messages/stream"
    scope: Any = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "http_version": "1.1",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"localhost"), (b"x-api-key", key.encode()), (b"last-event-id", beginning.encode())],
    }
    async with asyncio.timeout(30):
        await p.app(scope, receive, keep)
    return sent.decode()


async def places_of(p: Pair, path: str, list_of: str) -> list[tuple[int, int]]:
    answer = await get(p, path, ALL, limit="100", **({"scope": "topic"} if list_of == "messages" else {}))
    return [(one["partition"], one["offset"]) for one in answer.json()[list_of]]


async def all_answers(p: Pair, key: str) -> dict[str, str]:
    """Return the answers of all GETs of the consumer, and of some POSTs, by address."""
    templates = [route.path_format for route in p.app.routes if isinstance(route, HTTPRoute) and "GET" in route.methods]
    assert "/consumers/messages/{partition}/{offset}" in templates
    paths = {one for one in templates if "{" not in one and one != "/consumers/messages/stream"}
    paths |= {
        f"/consumers/messages/{at}/{offset}" for at, offset in await places_of(p, "/consumers/messages", "messages")
    }
    paths |= {f"{path}?limit=100" for path in ("/consumers/messages", "/consumers/dead-letters")}
    paths |= {
        "/consumers/messages?scope=topic&limit=100",
        "/consumers/messages?scope=topic&q=hap",
        "/consumers/messages/7/7",
    }
    answers = {path: (await p.consumer.get(path, headers=calling(key))).text for path in sorted(paths)}
    return {**answers, "tail": await tail_of(p, key, 6), "wait": await tail_of(p, key, 1, "q=hap")}


@asynccontextmanager
async def full_hotel(folder: Path) -> AsyncIterator[tuple[Pair, Handler]]:
    """Run a hotel with a happy guest, a sad one (refused), what cannot be decoded, and an angry one (retried)."""
    handler = Handler()
    async with hotel(folder, handler=handler) as p:
        await send(p, "happy", "happy", "sad")
        await publish(p, b'{"room": "%b"}' % SECRET.encode())
        await publish(p, SECRET.encode())
        await p.until(GUESTS, dead_lettered_count=3, messages_consumed_count=2)
        await send(p, "angry")
        await p.until_status(GUESTS, lambda status: status["failing_record"] or SECRET in (status["last_error"] or ""))
        yield p, handler


async def test_no_answer_shows_a_secret_to_a_key_without_the_role(tmp_path: Path) -> None:
    async with full_hotel(tmp_path) as (p, handler):
        shown, hidden = await all_answers(p, SEE), await all_answers(p, READ)
        leaks = [path for path, text in hidden.items() if SECRET in text or SECRET[1:] in text]
        assert not leaks
        assert {path for path, text in shown.items() if SECRET in text} >= {
            "/consumers/messages",
            "/consumers/messages?scope=topic&limit=100",
            "/consumers/messages/0/0",
            "/consumers/dead-letters",
            "/consumers/status",
            "tail",
        }
        handler.failing = False
        await p.until(GUESTS, messages_consumed_count=3, lag=0)


async def test_the_rest_of_a_record_is_shown_and_says_that_it_is_masked(tmp_path: Path) -> None:
    async with full_hotel(tmp_path) as (p, _):
        (message, *_) = (await get(p, "/consumers/messages", READ)).json()["messages"]
        home = {"street": "…"}
        expected = {
            "number": "…",
            "mood": "happy",
            "home": home,
            "homes": [home, None],
            "phones": {"mobile": "…"},
            "room": "small",
        }
        assert message["value"] == {**expected, "email": "y…@example.com"}
        assert (message["key"], message["masked"]) == ("…", True)
        letters = (await get(p, "/consumers/dead-letters", READ)).json()["dead_letters"]
        assert all(one["masked"] and one["key"] == {"text": "…"} for one in letters)
        by_type = {one["error_type"]: one for one in letters}
        sad = by_type.pop("apps.consumer.consuming.batch.Reject")
        assert '"mood":"sad"' in sad["value"]["text"]
        assert all((one["value"], one["error"]) == ({"text": "…"}, "…") for one in by_type.values())
        status = (await get(p, "/consumers/status?stream=guests", READ)).json()
        assert "ValueError" in status["last_error"]
        seen = (await get(p, "/consumers/messages", SEE)).json()["messages"][0]
        assert "masked" not in seen
        assert seen["value"] == guest("happy")
        assert (await get(p, "/session", READ)).json() == {"name": "r", "roles": ["read"]}
        assert (await get(p, "/session", SEE)).json() == {"name": "s", "roles": ["read", "read:sensitive"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "found", "found_by_all"),
    [(SECRET, 0, 6), ("example.com", 0, 4), ('"mood":"hap', 2, 2), ("…", 0, 0)],
)
async def test_a_search_finds_nothing_by_what_it_may_not_show(
    text: str, found: int, found_by_all: int, tmp_path: Path
) -> None:
    async with full_hotel(tmp_path) as (p, _):
        counts = [
            len((await get(p, "/consumers/messages", key, scope="topic", q=text, limit="100")).json()["messages"])
            for key in (READ, SEE)
        ]
        assert counts == [found, found_by_all]


@pytest.mark.parametrize("path", ["/consumers/messages", "/consumers/dead-letters", "/consumers/dead-letters/reasons"])
async def test_a_sensitive_key_cannot_be_guessed_by_a_search(path: str, tmp_path: Path) -> None:
    async with full_hotel(tmp_path) as (p, _):
        refused = await get(p, path, READ, key=f"{SECRET}-sad")
        assert (refused.status_code, refused.json()["type"]) == (403, "/problems/missing-role")
        assert "read:sensitive" in refused.json()["detail"]
        assert (await get(p, path, SEE, key=f"{SECRET}-sad")).status_code == 200
        assert (await get(p, path, READ, key="plain", stream="plain")).status_code == 200
        assert "403" in await tail_of(p, READ, 0, f"key={SECRET}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun_with", "now", "stream", "events"),
    [
        (SEE, SEE, "guests", 1),
        (SEE, READ, "guests", 0),
        (SEE, BLIND, "guests", 0),
        (READ, READ, "guests", 1),
        (READ, BLIND, "guests", 0),
        (SEE, READ, "plain", 1),
        (SEE, BLIND, "plain", 0),
    ],
)
async def test_the_live_tail_goes_on_only_as_long_as_its_caller_may_see_it(  # noqa: PLR0913, PLR0917 - its parameters
    begun_with: str, now: str, stream: str, events: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Access.while_allowed

    def with_other_roles(access: Access, connection: Any, pieces: Any, role: Role) -> Any:  # noqa: ANN401 - as they come
        headers = [(b"x-api-key", now.encode())]
        scope: Any = {**connection.scope, "headers": headers, "state": {}}
        return original(access, Request(scope), pieces, role, checked_every_s=-1)

    monkeypatch.setattr(Access, "while_allowed", with_other_roles)
    async with hotel(tmp_path) as p:
        await send(p, "happy", stream=stream)
        assert (await tail_of(p, begun_with, 1, f"stream={stream}")).count("\ndata: ") == events


async def test_an_operator_cannot_guess_what_an_error_quotes(tmp_path: Path) -> None:
    async with full_hotel(tmp_path) as (p, _):
        counts = {}
        for key, reason in [(OPERATE, SECRET), (BLIND, SECRET), (ALL, SECRET), (OPERATE, "Reject:"), (ALL, "Reject:")]:
            address = f"/consumers/dead-letters/discard?dry_run=true&stream=guests&reason={reason}"
            answer = await p.consumer.post(address, json={"limit": 9}, headers=calling(key))
            counts[key, reason] = answer.json()["would_discard"]
        assert list(counts.values()) == [0, 0, 2, 1, 1]
        for action, key in product(("discard", "redrive", "purge"), (OPERATE, BLIND)):
            address = f"/consumers/dead-letters/{action}?dry_run=true&stream=guests&key={SECRET}-sad"
            body = None if action == "purge" else {"limit": 9}
            refused = await p.consumer.post(address, json=body, headers=calling(key))
            assert refused.json()["type"] == "/problems/missing-role"
        stopped = await p.consumer.post("/consumers/stop?stream=guests", headers=calling(OPERATE))
        assert SECRET not in stopped.text


@pytest.mark.parametrize("key", [OPERATE, BLIND])
async def test_who_may_not_read_finds_no_dead_letter_by_what_its_error_says(key: str, tmp_path: Path) -> None:
    async with hotel(tmp_path, handler=Rejecting()) as p:
        await send(p, SECRET, stream="plain")
        await p.until(PLAIN, dead_lettered_count=1)
        counts = {}
        for action, by, reason in product(("discard", "redrive"), (key, ALL), (SECRET, "Reject:")):
            address = f"/consumers/dead-letters/{action}?dry_run=true&stream=plain&reason={reason}"
            answer = (await p.consumer.post(address, json={"limit": 9}, headers=calling(by))).json()
            counts[action, by, reason] = answer[f"would_{action}"]
        assert list(counts.values()) == [0, 1, 1, 1] * 2
        status = (await p.consumer.post("/consumers/stop?stream=plain", headers=calling(key))).text
        assert SECRET not in status


async def test_a_stream_without_marks_is_shown_as_it_is(tmp_path: Path) -> None:
    async with hotel(tmp_path, handler=Rejecting()) as p:
        await publish(p, b'{"id": "%b"}' % SECRET.encode(), stream="plain")
        await p.until(PLAIN, dead_lettered_count=1)
        for path in ("dead-letters?", "status?", "messages?scope=topic&"):
            answer = await p.consumer.get(f"/consumers/{path}stream=plain", headers=calling(READ))
            assert SECRET in answer.text, path
            assert '"masked"' not in answer.text


@pytest.mark.parametrize("keys", ["", f"a:{ALL}\n"])
async def test_everything_is_shown_where_no_key_has_roles(keys: str, tmp_path: Path) -> None:
    async with hotel(tmp_path, keys) as p:
        await send(p, "happy")
        await p.until(GUESTS, messages_consumed_count=1)
        p.consumer.headers.pop("X-API-Key")
        assert (await p.consumer.get("/consumers/messages")).json()["messages"][0]["value"] == guest("happy")
        assert SECRET in (await p.consumer.get("/consumers/messages", params={"scope": "topic", "q": SECRET})).text


async def test_the_poster_of_a_record_is_answered_with_what_was_posted(tmp_path: Path) -> None:
    async with hotel(tmp_path) as p:
        wrong = await p.producer.post("/producers/guests", json={**guest("happy"), SECRET: 1})
        assert (wrong.status_code, SECRET in wrong.text) == (400, True)
        sent = await p.producer.post("/producers/guests", json=guest("happy"))
        assert sent.json()["receipts"][0]["id"] == f"{SECRET}-happy"
