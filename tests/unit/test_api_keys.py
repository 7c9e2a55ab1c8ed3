import asyncio
import io
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar import Litestar
from litestar.testing import TestClient
from prometheus_client import CollectorRegistry
from samples import fields_of_an_event, until
from serving import answered

from apps.chassis.http import authentication as access
from apps.chassis.http import watched_file as module
from apps.chassis.http.admission import STRANGERS_CALLS, Limit
from apps.chassis.http.api_keys import ApiKey, Keys, read_key_file
from apps.chassis.http.authorization import ACCESS
from apps.chassis.observability.logs import ConsoleFormatter, request_id, set_up_logging, with_request
from apps.chassis.setting_reading import read_settings
from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import Settings
from tests.event_services import create_consumer, create_producer

NOBODY_LISTENS = "127.0.0.1:9"
KEY = "s3cret-of-operators"
ADAS, GRACES, NAMELESS, OTHER = "the-key-of-adas-1", "the:key:of:grace-2", "a-key-without-name", "and-another-key-4"
APPS: dict[str, Callable[..., Litestar]] = {"producer": create_producer, "consumer": create_consumer}
POSTS = {
    "producer": ["/producers/basic_producer", "/producers/events"],
    "consumer": [
        *(f"/consumers/{order}" for order in ("stop", "start", "pause", "resume", "seek")),
        *(f"/consumers/dead-letters/{action}" for action in ("redrive", "discard", "restore")),
    ],
}
EVERY_POST = pytest.mark.parametrize(("service", "path"), [(name, path) for name in POSTS for path in POSTS[name]])


@contextmanager
def client(service: str, **environment: str) -> Iterator[TestClient[Litestar]]:
    settings = read_settings({"KAFKA_BOOTSTRAP_SERVERS": NOBODY_LISTENS, **environment})
    with TestClient(APPS[service](settings)) as client:
        yield client


@pytest.fixture(scope="module")
def guarded() -> Iterator[dict[str, TestClient[Litestar]]]:
    with client("producer", API_KEY=KEY) as producer, client("consumer", API_KEY=KEY) as consumer:
        yield {"producer": producer, "consumer": consumer}


@EVERY_POST
@pytest.mark.parametrize("headers", [{}, {"X-API-Key": ""}, {"X-API-Key": KEY.title()}, {"X-API-Key": KEY[:-1]}])
def test_without_the_key_nothing_can_be_changed(
    guarded: dict[str, TestClient[Litestar]], service: str, path: str, headers: dict[str, str]
) -> None:
    answer = guarded[service].post(path, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
    assert "X-API-Key" in answer.headers["www-authenticate"]
    assert KEY not in answer.text


@pytest.mark.anyio
async def test_a_key_that_is_removed_while_a_body_arrives_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_producer(read_settings({"KAFKA_BOOTSTRAP_SERVERS": NOBODY_LISTENS, "API_KEY": KEY}))

    async def removing(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        async def remove_and_receive() -> Any:  # noqa: ANN401 - an ASGI event
            monkeypatch.setattr(app.state[ACCESS].authenticator, "identify", lambda _: None)
            return await receive()

        await app(scope, remove_and_receive, send)

    body, headers = msgspec.json.encode(fields_of_an_event()), {"content-type": "application/json", "x-api-key": KEY}
    start, *_ = await answered("/producers/events", headers, body[:5], body[5:], app=removing)
    assert start["status"] == 401


@pytest.mark.anyio
async def test_strangers_whose_bodies_never_end_take_no_room_from_callers_with_a_key_or_who_sign_in() -> None:
    settings = read_settings({"KAFKA_BOOTSTRAP_SERVERS": NOBODY_LISTENS, "API_KEY": KEY})
    app, headers = create_consumer(settings, admission=Limit(1_000_000, 1)), {"content-type": "application/json"}
    calling = [answered("/session/start", headers, b"{", app=app, silent=True) for _ in range(STRANGERS_CALLS + 1)]
    strangers = [asyncio.create_task(call) for call in calling]
    try:
        await asyncio.sleep(0.1)
        start, *_ = await answered("/consumers/history", {"x-api-key": KEY}, b"", app=app, method="GET")
        assert start["status"] == 200
        for _ in range(3):
            key = msgspec.json.encode({"key": KEY})
            start, *_ = await answered("/session/start", headers, key, app=app, scheme="http")
            assert start["status"] == 200
    finally:
        for stranger in strangers:
            stranger.cancel()
        await asyncio.gather(*strangers, return_exceptions=True)


@EVERY_POST
def test_with_the_key_a_call_is_taken(guarded: dict[str, TestClient[Litestar]], service: str, path: str) -> None:
    headers = {"X-API-Key": KEY, "Content-Type": "application/json"}
    assert guarded[service].post(path, headers=headers, content=b"{").status_code in {200, 400, 503}


@pytest.mark.parametrize("service", APPS)
def test_looking_needs_no_key(guarded: dict[str, TestClient[Litestar]], service: str) -> None:
    assert guarded[service].get("/livez").status_code == 200
    assert guarded[service].get("/schema").status_code == 200


@pytest.mark.parametrize("service", APPS)
def test_the_documents_ask_for_a_key_for_changes_and_who_made_them_only(
    guarded: dict[str, TestClient[Litestar]], service: str
) -> None:
    paths: dict[str, Any] = guarded[service].get("/schema/openapi.json").json()["paths"]
    looking = [paths[path]["get"] for path in paths if "get" in paths[path] and path != "/consumers/actions"]
    assert looking
    assert not any("security" in one for one in looking)


@EVERY_POST
def test_the_documents_say_which_calls_need_a_key(
    guarded: dict[str, TestClient[Litestar]], service: str, path: str
) -> None:
    document: dict[str, Any] = guarded[service].get("/schema/openapi.json").json()
    role = "send" if service == "producer" else "operate"
    assert document["paths"][path]["post"]["security"] == [{"ApiKey": [role]}, {"Session": [role]}]
    assert "401" in document["paths"][path]["post"]["responses"]
    scheme = document["components"]["securitySchemes"]["ApiKey"]
    assert (scheme["type"], scheme["in"], scheme["name"]) == ("apiKey", "header", "X-API-Key")


def test_without_a_key_in_the_settings_none_is_asked_for() -> None:
    with client("producer") as open_to_all:
        assert open_to_all.post("/producers/events", json=fields_of_an_event(number=-1)).status_code == 400
        assert '"security"' not in open_to_all.get("/schema/openapi.json").text


def names_of(keys: Keys, *offered: str) -> list[str | None]:
    """Return the name of each key that is accepted, None for the others."""
    return [found.name if (found := keys.find(one)) else None for one in offered]


def test_each_of_several_keys_is_accepted_and_known_by_its_name() -> None:
    keys = read_settings({"API_KEY": f"ada:{ADAS}, grace:{GRACES},{NAMELESS}"}).api_keys
    assert names_of(keys, ADAS, GRACES, NAMELESS) == ["ada", "grace", "default"]
    assert names_of(keys, f"ada:{ADAS}", "", "k\udcffy") == [None, None, None]


def test_keys_in_a_file_are_changed_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who may\n\n  # and since when\nada:{ADAS}\n", encoding="utf-8-sig")
    keys = Keys({"fixed": ApiKey("fixed", secret=OTHER)}, file, settled_after_s=0)
    assert names_of(keys, OTHER, ADAS, NAMELESS) == ["fixed", "ada", None]
    replace(file, f"ada:{NAMELESS}\n")
    assert names_of(keys, OTHER, ADAS, NAMELESS) == ["fixed", None, "ada"]


def test_a_file_of_keys_that_is_half_written_changes_nothing_and_counts_once_it_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"ada:{ADAS}\ngrace:{GRACES}\n")
    keys = Keys({}, file, settled_after_s=60)
    assert names_of(keys, ADAS, GRACES) == ["ada", "grace"]
    for half in (f"new:{NAMELESS}\n", f"new:{NAMELESS}\nada:{ADAS[:16]}"):
        file.write_text(half)
        assert names_of(keys, ADAS, GRACES, ADAS[:16], NAMELESS) == ["ada", "grace", None, None]
    file.write_text(f"new:{NAMELESS}\nada:{ADAS}\n")
    aged = time.time() - 61
    os.utime(file, (aged, aged))
    assert names_of(keys, ADAS, GRACES, NAMELESS) == ["ada", None, "new"]


def test_a_file_of_keys_that_could_not_be_read_is_read_once_its_permissions_are_mended(tmp_path: Path) -> None:
    file, answers = tmp_path / "keys", ["first", PermissionError("denied"), "second"]
    file.write_text("first")

    def read() -> str:
        answer = answers.pop(0)
        if isinstance(answer, PermissionError):
            raise answer
        return str(answer)

    watched = module.WatchedFile(file, "API_KEY_FILE", read, settled_after_s=0)
    assert watched.look()
    replace(file, "second")
    assert [watched.look(), watched.look()] == [False, False]
    file.chmod(0o604)
    assert watched.look()
    assert watched.keys == "second"


@pytest.mark.anyio
async def test_a_file_of_keys_with_a_time_to_come_counts_once_it_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"ada:{ADAS}")
    keys = Keys({}, file, settled_after_s=0.05)
    assert names_of(keys, ADAS) == ["ada"]
    file.write_text(f"grace:{GRACES}")
    ahead = time.time() + 3_600
    os.utime(file, (ahead, ahead))
    await until(lambda: names_of(keys, GRACES) == ["grace"])
    assert names_of(keys, ADAS) == [None]


DAMAGES = {
    "same name": f"ada:{NAMELESS}\nada:{OTHER}",
    "too weak": "ada:",
    "got 6": "ada:s3cret",
    "no key is given": "",
    "no key is given;": "# revoked\n",
    "name as one in API_KEY": f"fixed:{OTHER}",
    "in API_KEY too": f"ada:{GRACES}",
    "under another name": f"ada:{OTHER}\ngrace:{OTHER}",
    "comma": f"ada:{NAMELESS},grace:{OTHER}",
    "not UTF-8": "\udcff",
    "No such file": None,
}


@pytest.mark.parametrize(("damage", "content"), DAMAGES.items())
def test_a_file_of_keys_that_a_start_would_refuse_leaves_those_in_use_and_is_logged_once(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
    content: str | None,
) -> None:
    caplog.set_level(logging.WARNING)  # services that ran before may have set another
    file = tmp_path / "keys"
    file.write_text(f"ada:{ADAS}")
    keys = Keys({"fixed": ApiKey("fixed", secret=GRACES)}, file, settled_after_s=0)
    assert names_of(keys, ADAS) == ["ada"]
    if isinstance(content, str):
        replace(file, content)
    else:
        file.unlink()
    assert names_of(keys, ADAS, GRACES, NAMELESS, OTHER, "") == ["ada", "fixed", None, None, None]
    logged = [record for record in caplog.records if record.name == module.__name__]
    (said,) = [record.getMessage() for record in logged if record.levelno > logging.INFO]
    assert damage in said
    assert not [secret for secret in (ADAS, GRACES, NAMELESS, OTHER, "s3cret") if secret in caplog.text]


def test_a_pipe_in_place_of_a_file_of_keys_is_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "keys"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(f"ada:{ADAS}",), daemon=True)  # waits for a reader
    writer.start()
    with pytest.raises(ValueError, match="not a regular file"):
        read_key_file(pipe, {})
    assert ADAS in pipe.read_text()
    writer.join()


def replace(file: Path, content: str) -> None:
    """Put another file in its place, as a rotation does."""
    new = file.with_suffix(".new")
    new.write_text(content, errors="surrogateescape")
    os.replace(new, file)  # noqa: PTH105 - the system's word for it


MISREAD = [
    "s3cret",  # weak
    "abc:s3cret",  # a key with a colon, of which only the end would work
    "fifteen-s3cret!",
    f"ada:{ADAS},two-s3cret",
    "ada:",
    "ada:   ",
    f":{NAMELESS}",
    f"s3cret!abc:{NAMELESS}",  # the beginning of a key is no name
    f"s3cret of mine:{NAMELESS}",
    f"{'s3cret' * 6}:{NAMELESS}",
    f"sécret:{NAMELESS}",
    f"ada:{ADAS},ada:{OTHER}",
    f"{NAMELESS},{OTHER}",  # both are called `default`
    f"ada:{ADAS},grace:{ADAS}",
    f"ada:s3cret {NAMELESS}",
    f"ada:s3cret-é-{NAMELESS}",
    f"ada:s3cret\x7f{NAMELESS}",
]


@pytest.mark.parametrize("wrong", MISREAD)
def test_keys_that_are_weak_or_may_be_misread_stop_the_start_with_one_line_that_quotes_nothing(
    wrong: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(wrong.replace(",", "\n"))
    for variable, value in (("API_KEY", wrong), ("API_KEY_FILE", str(file))):
        with pytest.raises(WrongSetting, match=rf"^{variable}: key [12] [^\n]*$") as raised:
            read_settings({variable: value})
        reported = str(raised.value)
        assert not [part for part in ("s3cret", "ada", "abc", ADAS, NAMELESS, OTHER) if part in reported]
        assert re.search("write name:key|openssl rand|give each its own|leave one out", reported)


def test_a_file_of_keys_that_is_missing_or_empty_stops_the_start(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(WrongSetting, match=r"^API_KEY_FILE: .*No such file"):
        read_settings({"API_KEY_FILE": str(tmp_path / "missing")})
    with pytest.raises(WrongSetting, match=r"^API_KEY_FILE: no key is given"):
        read_settings({"API_KEY_FILE": str(empty)})


@pytest.mark.parametrize("meant", [",", " , ,", f"#{NAMELESS}", f"ada:{ADAS},#{NAMELESS}", f"ada:#{NAMELESS}"])
def test_what_looks_like_no_key_never_leaves_a_service_open(meant: str) -> None:
    with pytest.raises(WrongSetting, match=r"^API_KEY: ") as raised:
        read_settings({"API_KEY": meant})
    assert not [secret for secret in (NAMELESS, ADAS) if secret in str(raised.value)]


def test_key_files_have_comments_and_empty_lines(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# a comment\n\na.b_c-1: {ADAS} \n  # and another\n{NAMELESS}")
    assert [*read_key_file(file, {}).values()] == [ApiKey("a.b_c-1", secret=ADAS), ApiKey("default", secret=NAMELESS)]


@pytest.mark.parametrize("ending", ["\v", "\f", "\r", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_a_comment_of_a_key_file_ends_at_a_line_feed_and_at_nothing_else(tmp_path: Path, ending: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(f"# old{ending}grace:{GRACES}\r\nada:{ADAS}\r\n".encode())
    assert [*read_key_file(file, {})] == ["ada"]
    file.write_bytes(f"ada:{ADAS} roles=read{ending}grace:{GRACES}\n".encode())
    with pytest.raises(ValueError, match="key 1 is followed by something else"):
        read_key_file(file, {})


def test_wrong_keys_are_counted_and_logged_at_once_and_then_in_one_line_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def logged() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == access.__name__]

    async def guess() -> None:
        request_id.set("the-first")
        refused = access.RefusedKeys(registry, logged_every_s=0.05)
        for _ in range(7_500):
            refused.note("wrong")
        refused.note("missing")
        assert logged() == ["calls refused because of a wrong API key or token: 1"]
        await until(lambda: len(logged()) == 2)
        await asyncio.sleep(0.1)  # nothing to tell, and no timer is left
        refused.note("wrong")

    registry = CollectorRegistry()
    caplog.handler.addFilter(with_request)
    asyncio.run(guess())
    caplog.handler.removeFilter(with_request)
    lines = [record for record in caplog.records if record.name == access.__name__]
    assert [vars(line)["request_id"] for line in lines] == ["the-first", None, "the-first"]
    assert logged() == [f"calls refused because of a wrong API key or token: {count}" for count in (1, 7_499, 1)]
    counts = [registry.get_sample_value("api_key_refusals_total", {"reason": each}) for each in ("wrong", "missing")]
    assert counts == [7_501, 1]


def test_a_refused_key_is_seen_in_the_metrics() -> None:
    with client("consumer", API_KEY=KEY) as consumer:
        assert consumer.post("/consumers/stop", headers={"X-API-Key": "guess"}).status_code == 401
        assert consumer.post("/consumers/stop").status_code == 401
        page = consumer.get("/metrics").text
    assert 'api_key_refusals_total{reason="wrong"} 1.0' in page
    assert 'api_key_refusals_total{reason="missing"} 1.0' in page


@pytest.mark.usefixtures("process_logging")
def test_the_log_of_an_operator_action_names_the_key_and_never_reveals_it() -> None:
    lines = io.StringIO()
    with client("consumer", API_KEY=f"grace:{GRACES},ada:{ADAS}", LOG_FORMAT="json") as consumer:
        set_up_logging(Settings(log_format="json"))
        (handler,) = logging.getLogger().handlers
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(lines)
        consumer.post("/consumers/stop", headers={"X-API-Key": ADAS})
        handler.setFormatter(ConsoleFormatter())
        consumer.post("/consumers/pause", headers={"X-API-Key": GRACES, "X-Request-Id": "the-pause"})
    as_json, as_text = [line for line in lines.getvalue().splitlines() if "an operator asked for" in line]
    assert msgspec.json.decode(as_json)["key_name"] == "ada"
    assert as_text.endswith("(request the-pause, key grace)")
    assert not [key for key in (ADAS, GRACES) if key in lines.getvalue()]


@pytest.mark.parametrize("service", APPS)
@pytest.mark.parametrize(
    "path", ["/livez", "/nowhere", "/consumers/messages?limit=x", "/schema", "/schema/openapi.json"]
)
def test_every_answer_forbids_a_browser_to_trust_anything_in_it(
    guarded: dict[str, TestClient[Litestar]], service: str, path: str
) -> None:
    headers = guarded[service].get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"


def test_a_file_of_keys_that_goes_before_the_first_call_keeps_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"ada:{ADAS}\n")
    app = create_producer(read_settings({"API_KEY_FILE": str(file), "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}))
    file.unlink()
    with TestClient(app) as client:
        assert client.post("/producers/events", headers={"X-API-Key": ADAS}).status_code == 400
