"""Who may make which call: `docs/reference/roles.md` shows the table that is made here."""

import asyncio
import hmac
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar
from litestar.routes import HTTPRoute
from litestar.testing import TestClient
from serving import LINES, closed, noting_reads, serving

from apps.chassis.http import authentication
from apps.chassis.http.api_keys import ApiKey, read_key_file
from apps.chassis.http.authorization import Access
from apps.chassis.http.guess_limit import BURST, PLACES_OF_A_KEY, REMEMBERED, GuessLimit
from apps.chassis.http.roles import ROLE, Role
from apps.chassis.setting_reading import read_settings
from apps.chassis.setting_types import WrongSetting
from contracts.stream import Stream
from tests.event import EVENTS, Event
from tests.event_services import create_consumer, create_producer

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "roles.md"
DELETABLE = Stream(EVENTS.name, Event, key=lambda event: event.id, deletes=True)
APPS: dict[str, Callable[..., Litestar]] = {
    "producer": partial(create_producer, streams=[DELETABLE]),
    "consumer": create_consumer,
}
CALLING = (Role.SEND, Role.READ, Role.OPERATE)
"""The roles that calls need; `read:sensitive` is about what they show."""
SECRETS = {role: f"the-key-that-may-{role}" for role in CALLING}
ALL = "the-key-that-may-do-all"
KEY_FILE = "".join(f"{role}r:{secret} roles={role}\n" for role, secret in SECRETS.items()) + f"all:{ALL}\n"
SELF = "http://testserver.local"

Client = TestClient[Litestar]


@contextmanager
def client(service: str, **environment: str) -> Iterator[Client]:
    settings = read_settings({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", **environment})
    with TestClient(APPS[service](settings)) as client:
        yield client


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(KEY_FILE)
    return file


def rewrite(key_file: Path, text: str) -> None:
    """Change a key file, as if that had been a minute ago."""
    key_file.write_text(text)
    settled = time.time() - 60
    os.utime(key_file, (settled, settled))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Client]]:
    """Both services with a key for each role."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(KEY_FILE)
    with ExitStack() as stack:
        yield {name: stack.enter_context(client(name, API_KEY_FILE=str(file))) for name in APPS}


@pytest.fixture(scope="module")
def lookable() -> Iterator[dict[str, Client]]:
    """Both services with one key, which reading does not need."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(client(name, API_KEY=ALL)) for name in APPS}


def calls_of(app: Litestar) -> Iterator[tuple[str, str, str]]:
    """Yield method, path and declared role of each call."""
    for route in app.routes:
        assert isinstance(route, HTTPRoute)
        for method, (handler, _) in route.route_handler_map.items():
            if method not in {"OPTIONS", "HEAD"}:
                yield method, route.path_format, str(handler.opt[ROLE])


def is_let_through(client: Client, method: str, path: str, key: str | None) -> bool:
    """Return whether a call passes the guard: behind it each is refused for its parameter, or is a page."""
    path = re.sub(r"\{[^}]*\}", "0", path) + "?no-such-parameter=1"
    answer = client.request(method, path, headers={} if key is None else {"X-API-Key": key}, follow_redirects=False)
    assert answer.status_code < 500
    return answer.status_code not in {401, 403}


@pytest.mark.slow
def test_each_call_of_both_services_is_documented_with_the_roles_that_may_make_it(
    guarded: dict[str, Client], lookable: dict[str, Client]
) -> None:
    lines = []
    for service in APPS:
        for method, path, role in sorted(calls_of(guarded[service].app), key=lambda call: (call[1], call[0])):
            open_to_all = is_let_through(lookable[service], method, path, None)
            may = [is_let_through(guarded[service], method, path, key) for key in (None, *SECRETS.values())]
            assert is_let_through(guarded[service], method, path, ALL)
            assert may == [role in {"anyone", "metrics"} or role == one for one in ("nobody", *CALLING)]
            assert open_to_all == (role not in {"send", "operate"})
            cells = ["yes" if one else "" for one in (open_to_all, *may)]
            shown = re.sub(r"^/page/.*", "/page/{file}", path.replace(EVENTS.name, "{stream}"))
            if method == "DELETE":  # also of keys that are other paths
                shown = re.sub(r"(?<={stream}/).+", "{key}", shown)
            lines.append(f"| {service} | `{method} {shown}` | {' | '.join(cells)} |".replace("  ", " "))
    table = "\n".join(dict.fromkeys(lines))
    assert table in DOCUMENT.read_text(), f"the table in {DOCUMENT.name} is now:\n{table}"


@pytest.mark.parametrize("service", APPS)
def test_the_openapi_document_names_the_role_of_each_call(guarded: dict[str, Client], service: str) -> None:
    document = guarded[service].get("/schema/openapi.json", headers={"X-API-Key": SECRETS[Role.READ]}).json()
    asked = {
        (method.upper(), path): operation.get("security")
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    for method, path, role in calls_of(guarded[service].app):
        if (method, path) in asked:
            expected = None if role in {"anyone", "metrics"} else [{"ApiKey": [role]}, {"Session": [role]}]
            assert asked[method, path] == expected
    session = signed_in(guarded[service], ALL).partition("=")[0]
    assert document["components"]["securitySchemes"]["Session"]["name"] == session


def test_a_key_without_the_role_is_told_which_one_it_lacks(guarded: dict[str, Client]) -> None:
    answer = guarded["consumer"].post("/consumers/stop", headers={"X-API-Key": SECRETS[Role.READ]})
    assert answer.status_code == 403
    assert answer.json()["type"] == "/problems/missing-role"
    assert answer.json()["detail"] == "this call needs the role operate; readr does not have it"


@pytest.mark.parametrize("service", APPS)
def test_health_tells_no_details_to_who_may_not_read(guarded: dict[str, Client], service: str) -> None:
    seen = guarded[service].get("/health-check")
    details = guarded[service].get("/health-check", headers={"X-API-Key": SECRETS[Role.READ]})
    assert (seen.status_code, details.status_code) == (503, 503)
    assert seen.json()["detail"] == "details need a key with the role read"
    assert "127.0.0.1" in details.json()["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("reads", ["true", "false"])
@pytest.mark.parametrize("given", ["", " expires=2020-01-01"])
def test_a_probe_with_a_key_that_is_not_accepted_is_answered_as_without_one(
    reads: str, given: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"ada:{ALL}{given}\n")
    wrong = {"X-API-Key": ALL if given else "a-key-that-nobody-has"}
    with client("consumer", API_KEY_FILE=str(file), API_KEY_READS=reads) as consumer:
        health = consumer.get("/health-check", headers=wrong)
        assert health.status_code == 503
        assert (health.json()["detail"] == "details need a key with the role read") == (reads == "true")
        for path in ("/livez", "/metrics"):
            assert consumer.get(path, headers=wrong).status_code == 200
        refused = f'api_key_refusals_total{{reason="{"expired" if given else "wrong"}"}} 1.0'
        assert refused in consumer.get("/metrics").text  # a guess at health counts as one


def test_one_key_protects_reading_where_the_setting_says_so() -> None:
    with client("consumer", API_KEY=ALL, API_KEY_READS="true", METRICS_PUBLIC="false") as consumer:
        for path in ("/consumers/status", "/consumers/messages", "/metrics", "/schema/openapi.json", "/asyncapi.json"):
            assert consumer.get(path).status_code == 401
            assert consumer.head(path).status_code == 401
            assert consumer.get(path, headers={"X-API-Key": ALL}).status_code == 200
        assert consumer.get("/livez").status_code == 200
        assert consumer.get("/").status_code == 200


@pytest.mark.parametrize("wrong", [{"API_KEY_READS": "true"}, {"METRICS_PUBLIC": "false"}])
def test_a_switch_that_needs_keys_stops_the_start_without_them(wrong: dict[str, str]) -> None:
    (name,) = wrong
    with pytest.raises(WrongSetting, match=rf"^{name}: needs API_KEY, API_KEY_FILE or JWT_ISSUER$"):
        read_settings(wrong)


@pytest.mark.parametrize(
    ("line", "roles"),
    [
        (f"ada:{ALL}", [*Role]),
        (f"ada:{ALL}  roles=operate,read   expires=2999-01-31", ["read", "operate"]),
        (f"ada: {ALL} expires=2999-01-31T12:00:00+01:00 roles=send", ["send"]),
        (f"ada:{ALL} expires=2999-01-31", [*Role]),
        (f"{ALL} roles=read", ["read"]),
        (f"{ALL} roles=read,read:sensitive", ["read", "read:sensitive"]),
        (f"{ALL} expires=2999-01-31T12:00:00Z", [*Role]),
    ],
)
def test_a_line_gives_its_key_roles_and_an_end(line: str, roles: list[str], tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(line)
    (key,) = read_key_file(file, {}).values()
    assert (key.secret, key.roles, key.has_expired) == (ALL, roles, False)
    assert ALL not in repr(key)


@pytest.mark.parametrize(
    "options",
    [
        *("roles=", "roles=admin", "roles=read,", "roles=read, operate", "role=read", "read", "roles=read roles=send"),
        *("roles", "expires=", "expires=soon", "expires=2027-13-01", "expires=2027-01-01 12:00", "# comment"),
    ],
)
def test_wrong_options_of_a_key_stop_the_start_and_quote_nothing(options: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\nada:{ALL} {options}\n")
    with pytest.raises(WrongSetting, match=r"^API_KEY_FILE: key 2 is followed by something else than roles=") as raised:
        read_settings({"API_KEY_FILE": str(file)})
    assert ALL not in str(raised.value)


def test_a_key_that_has_expired_is_refused_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"ada:{ALL} expires=2020-01-01\n")
    with client("consumer", API_KEY_FILE=str(file)) as consumer:
        answer = consumer.post("/consumers/stop", headers={"X-API-Key": ALL})
        assert (answer.status_code, answer.json()["detail"]) == (401, "the key ada has expired")
        assert 'api_key_refusals_total{reason="expired"} 1.0' in consumer.get("/metrics").text


def signed_in(client: Client, key: str, origin: str = SELF) -> str:
    """Sign in as a page does, and return the whole header that sets the cookie."""
    answer = client.post("/session/start", json={"key": key}, headers={"Origin": origin})
    client.cookies.clear()
    assert answer.status_code == 200
    return str(answer.headers["set-cookie"])


def by_session(cookie: str, **headers: str) -> dict[str, str]:
    return {"Cookie": cookie.partition(";")[0], **headers}


def test_a_page_signs_in_once_and_is_told_who_it_is_and_what_it_may_do(guarded: dict[str, Client]) -> None:
    consumer = guarded["consumer"]
    assert consumer.get("/session").json() == {"name": None, "roles": []}
    cookie = signed_in(consumer, SECRETS[Role.READ])
    assert set(cookie.lower().split("; ")[1:]) == {"httponly", "max-age=28800", "path=/", "samesite=strict"}
    assert SECRETS[Role.READ] not in cookie
    headers = by_session(cookie)
    assert consumer.get("/session", headers=headers).json() == {"name": "readr", "roles": ["read"]}
    assert consumer.get("/consumers/status", headers=headers).status_code == 200
    assert consumer.get("/consumers/status").status_code == 401
    assert consumer.post("/consumers/stop", headers={**headers, "Origin": SELF}).status_code == 403
    out = consumer.post("/session/end", headers={**headers, "Origin": SELF})
    assert "max-age=0" in out.headers["set-cookie"].lower()


def test_a_key_that_is_refused_leaves_no_session_of_somebody_before(guarded: dict[str, Client]) -> None:
    headers = by_session(signed_in(guarded["producer"], ALL), Origin=SELF)
    answer = guarded["producer"].post("/session/start", json={"key": "a-key-of-nobody-at-all"}, headers=headers)
    assert answer.status_code == 401
    name, attributes = headers["Cookie"].partition("=")[0], answer.headers["set-cookie"].lower()
    assert attributes.startswith(f'{name}=""; ')
    assert set(attributes.split("; ")[1:]) == {"httponly", "max-age=0", "path=/", "samesite=strict"}


def test_a_session_is_found_among_other_cookies_and_only_under_its_own_name(guarded: dict[str, Client]) -> None:
    consumer = guarded["consumer"]
    own = signed_in(consumer, SECRETS[Role.READ]).partition(";")[0]
    other = 'a="\\"; =; b'
    for cookies in (own, f"{other}; {own}; {other}", f"{other};{own};{other}"):
        assert consumer.get("/session", headers={"Cookie": cookies}).json()["name"] == "readr"
    for cookie in (f"a{own}", f"a={own}", f"a; b {own}", own.replace("=", "2="), f"{own}0"):
        assert consumer.get("/session", headers={"Cookie": cookie}).json() == {"name": None, "roles": []}


def test_without_keys_everybody_may_do_everything_and_nobody_signs_in(lookable: dict[str, Client]) -> None:
    with client("consumer") as consumer:
        assert consumer.get("/session").json() == {"name": None, "roles": [*Role]}
        assert "set-cookie" not in consumer.post("/session/start", json={"key": ALL}).headers
    assert lookable["consumer"].get("/session").json() == {"name": None, "roles": ["read", "read:sensitive"]}


def test_a_session_is_secure_under_tls_and_bound_to_the_prefix_of_the_service() -> None:
    with client("consumer", API_KEY=ALL, ROOT_PATH="/kafka/consumer") as consumer:
        cookie = signed_in(consumer, ALL, "https://testserver.local").lower()
    assert "; secure" in cookie
    assert "; path=/kafka/consumer;" in cookie


def test_a_session_changes_nothing_unless_the_browser_names_its_own_page(guarded: dict[str, Client]) -> None:
    consumer = guarded["consumer"]
    headers = by_session(signed_in(consumer, SECRETS[Role.OPERATE]))
    for foreign in (
        {},
        {"Origin": "http://testserver.local:9"},
        {"Origin": "http://other.testserver.local", "Sec-Fetch-Site": "same-site"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ):
        answer = consumer.post("/consumers/pause", headers={**headers, **foreign})
        assert (answer.status_code, answer.json()["type"]) == (403, "/problems/foreign-origin")
    for own in ({"Origin": SELF}, {"Sec-Fetch-Site": "same-origin"}):
        assert consumer.post("/consumers/pause", headers={**headers, **own}).status_code == 200


def test_a_session_holds_on_every_instance_with_its_key_and_dies_with_the_key(key_file: Path) -> None:
    with client("consumer", API_KEY_FILE=str(key_file)) as one, client("consumer", API_KEY_FILE=str(key_file)) as other:
        headers = by_session(signed_in(one, SECRETS[Role.READ]))
        assert other.get("/consumers/status", headers=headers).status_code == 200
        rewrite(key_file, KEY_FILE.replace(SECRETS[Role.READ], "another-key-of-readr"))
        answer = other.get("/consumers/status", headers=headers)
        assert answer.status_code == 401
        assert "max-age=0" in answer.headers["set-cookie"].lower()  # or an open page would count as one who guesses
    with client("producer", API_KEY=f"readr:{SECRETS[Role.READ]}", API_KEY_READS="true") as producer:
        cookie = headers["Cookie"].replace("consumer", "producer")
        assert producer.get("/schema", headers={"Cookie": cookie}).status_code == 401


def test_a_session_ends_and_cannot_be_prolonged(guarded: dict[str, Client], monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = guarded["consumer"]
    with monkeypatch.context() as patched:
        patched.setattr(authentication, "SESSION_S", -1)
        old = signed_in(consumer, SECRETS[Role.READ]).partition(";")[0]
    name = old.partition("=")[0]
    _, until, signature = old.rsplit(".", 2)
    longer = f"{name}=readr.{int(until) + 1_000}.{signature}"
    for cookie in (old, longer, f"{name}=readr", f"{name}=allr.9999999999.{'0' * 64}"):
        assert consumer.get("/consumers/status", headers={"Cookie": cookie}).status_code == 401


def test_a_forged_session_does_not_tell_whether_a_key_of_its_name_exists(
    guarded: dict[str, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = signed_in(guarded["consumer"], ALL).partition("=")[0]
    signed, sign = list[bytes](), hmac.digest
    monkeypatch.setattr(hmac, "digest", lambda *given: signed.append(given[1]) or sign(*given))  # type: ignore[func-returns-value]
    forged = [f"{session}={name}.9999999999.{'0' * 64}" for name in ("readr", "nobody")]
    answers = [guarded["consumer"].get("/session", headers={"Cookie": cookie}) for cookie in forged]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].content == answers[1].content
    assert answers[0].headers["set-cookie"] == answers[1].headers["set-cookie"]
    assert len(signed) == 2  # or the time of the answer would tell it
    with client("consumer") as unguarded:  # its callers may still have a session of earlier days
        assert unguarded.get("/session", headers={"Cookie": forged[0]}).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hosts", "prefixes"),
    [
        (("localhost:8001", "localhost:8002"), ("", "")),
        (("localhost", "localhost:8002"), ("", "")),
        (("[::1]:8001", "[::1]:8002"), ("", "")),
        (("localhost", "localhost"), ("", "/kafka/consumer")),
    ],
)
def test_two_services_of_one_host_neither_take_nor_end_the_session_of_the_other(
    hosts: tuple[str, str], prefixes: tuple[str, str]
) -> None:
    with ExitStack() as stack:
        cookie_of, sessions, asked = dict[str, str](), [], []
        for name, host, prefix in zip(("ada", "bob"), hosts, prefixes, strict=True):
            keys = {"API_KEY": f"{name}:the-key-of-{name}-alone", "API_KEY_READS": "true", "ROOT_PATH": prefix}
            service = stack.enter_context(client("consumer", **keys))
            service.headers["Host"] = host
            sessions.append(signed_in(service, f"the-key-of-{name}-alone", f"http://{host}").partition(";")[0])
            cookie_of[name] = sessions[-1].partition("=")[0]
            asked.append((name, service))
        sent = "; ".join(sessions)
        for name, service in asked:
            answer = service.get("/session", headers={"Cookie": sent})
            assert (answer.json().get("name"), answer.headers.get("set-cookie")) == (name, None)
            out = service.post("/session/end", headers={"Cookie": sent, "Sec-Fetch-Site": "same-origin"})
            assert out.headers["set-cookie"].partition("=")[0] == cookie_of[name]


@pytest.mark.slow
def test_a_page_whose_session_has_ended_slows_nobody_behind_its_address_and_a_guesser_of_sessions_is_slowed() -> None:
    with client("consumer", API_KEY=ALL, API_KEY_READS="true") as consumer:
        session = signed_in(consumer, ALL).partition("=")[0]

        def status(until: int) -> int:
            cookie = f"{session}=nobody.{until}.{'0' * 64}"
            return consumer.get("/session", headers={"Cookie": cookie}).status_code

        assert {status(9_999_999_999) for _ in range(2 * BURST)} == {401}
        tried = [status(9_999_999_998 - number) for number in range(2 * BURST)]
        assert (tried[0], tried[-1]) == (401, 429)


def test_while_an_address_is_slowed_a_session_of_a_rightly_guessed_key_is_answered_as_any_other_however_often_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with client("consumer", API_KEY=ALL, API_KEY_READS="true") as consumer:
        right = signed_in(consumer, ALL).partition(";")[0]
        cookie, _, value = right.partition("=")
        name, until, _ = value.split(".")
        known, new = (f"{cookie}={name}.{until}.{digit * 64}" for digit in "01")
        monkeypatch.setattr(consumer.app.state["access"].authenticator, "_guesses", GuessLimit(now=lambda: 0.0))

        def status(**headers: str) -> int:
            return consumer.get("/session", headers=headers).status_code

        assert status(Cookie=known) == 401
        assert {status(**{"X-API-Key": f"guess {number}"}) for number in range(BURST)} == {401}
        assert [status(Cookie=one) for one in (known, new, right) for _ in range(3)] == 9 * [429]


@pytest.mark.anyio
async def test_a_long_answer_ends_with_the_key_of_its_caller(guarded: dict[str, Client]) -> None:
    access: Access = guarded["consumer"].app.state["access"]
    allowed = [True, True, True, False]

    class Watched(Access):
        def may_read(self, connection: Any, role: Role = Role.READ) -> bool:  # noqa: ANN401, ARG002
            return allowed.pop(0)

    async def pieces() -> Any:  # noqa: ANN401
        for _ in range(9):  # not for ever: the test must end when the answer does not
            yield b"event"
            yield b""  # there is nothing to send, but the caller is looked at

    watched = Watched(access.authenticator, metrics_public=True)
    found = [piece async for piece in watched.while_allowed(Any, pieces(), checked_every_s=-1)]  # type: ignore[arg-type]
    assert (found, allowed) == ([b"event", b"event"], [])


ENDED_KEYS = {
    "removed": ("", b"401", b"the key is not accepted"),
    "expired": (" roles=send expires=2020-01-31", b"401", b"the key sendr has expired"),
    "without its role": (" roles=read", b"403", b"sendr does not have it"),
}


@pytest.mark.anyio
@pytest.mark.parametrize(("options", "status", "reason"), ENDED_KEYS.values(), ids=ENDED_KEYS.keys())
@pytest.mark.parametrize("query", [b"", b"?receipts=at-end"], ids=["streamed", "at the end"])
async def test_lines_are_taken_until_the_key_of_their_caller_ends_and_those_are_answered(
    key_file: Path, query: bytes, options: str, status: bytes, reason: bytes
) -> None:
    sendr, rest = KEY_FILE.split("\n", 1)
    producer, has_read = create_producer(read_settings({"API_KEY_FILE": str(key_file)})), asyncio.Event()
    async with serving(noting_reads(producer, has_read)) as connect:
        reader, writer = await connect()
        writer.write(LINES % query + f"X-API-Key: {SECRETS[Role.SEND]}\r\n".encode())
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n8\r\nno line\n\r\n")
        await has_read.wait()
        rewrite(key_file, (sendr.split()[0] + options + "\n") * bool(options) + rest)
        writer.write(b"8\r\nno line\n\r\n")
        said = await (reader.readuntil(b"\r\n0\r\n\r\n") if query else closed(reader))
    assert reason + b"; 1 lines before that were taken" in said
    assert said.count(b'"line":') == 1
    assert said.startswith(b"HTTP/1.1 %b " % (status if query else b"200"))
    assert (b'"outcome":"broken_off"' in said) is (not query)


def test_guessing_is_slowed_and_keys_in_use_are_not_locked_out() -> None:
    now = [100.0]
    limit = GuessLimit(now=lambda: now[0])
    limit.note_used("10.0.0.1", "ada")
    for _ in range(BURST + 1):
        assert not limit.blocks("10.0.0.1", None)
        limit.note_wrong("10.0.0.1")
    assert limit.blocks("10.0.0.1", None)
    assert limit.blocks("10.0.0.1", "grace")  # so that a right guess is not noticed
    assert not limit.blocks("10.0.0.1", "ada")
    assert not limit.blocks("10.0.0.2", "grace")
    now[0] += 1.5
    assert not limit.blocks("10.0.0.1", "grace")


def test_what_is_remembered_of_guesses_is_bounded_and_a_network_of_addresses_is_one() -> None:
    limit = GuessLimit(burst=1, now=lambda: 0.0)
    for number in range(3 * REMEMBERED):
        limit.note_wrong(f"10.0.{number // 256}.{number % 256}")
        limit.note_used("10.0.0.1", f"key-{number}")
    assert max(len(vars(limit)["_paid_off"]), len(vars(limit)["_used"])) == REMEMBERED
    for number in range(3):
        limit.note_wrong(f"2001:db8:0:1::{number:x}")
    assert limit.blocks("2001:db8:0:1:ffff::1", None)
    assert not limit.blocks("2001:db8:0:2::1", None)
    for _ in range(3):
        limit.note_wrong("::ffff:10.9.9.1")  # how an IPv4 address appears to a service that listens on `::`
    assert limit.blocks("::ffff:10.9.9.1", None)
    assert not limit.blocks("::ffff:10.9.9.2", None)


def test_a_key_that_is_used_from_very_many_addresses_locks_no_other_one_out() -> None:
    limit = GuessLimit(burst=1, now=lambda: 0.0)
    limit.note_used("10.0.0.1", "ada")
    for number in range(2 * REMEMBERED):
        limit.note_used(f"10.1.{number // 256}.{number % 256}", "grace")
    for _ in range(3):
        limit.note_wrong("10.0.0.1")
    assert not limit.blocks("10.0.0.1", "ada")
    assert {name: len(places) for name, places in vars(limit)["_used"].items()} == {"ada": 1, "grace": PLACES_OF_A_KEY}


@pytest.mark.parametrize(("address", "name"), [("10.1.{}.{}", "ada"), ("10.0.0.1", "token:{}-{}")])
def test_a_key_that_goes_on_being_used_at_an_address_is_not_locked_out_there(address: str, name: str) -> None:
    limit = GuessLimit(burst=1, now=lambda: 0.0)
    for number in range(2 * REMEMBERED):
        limit.note_used("10.0.0.1", "ada")
        limit.note_used(address.format(*divmod(number, 256)), name.format(*divmod(number, 256)))
    for _ in range(3):
        limit.note_wrong("10.0.0.1")
    assert not limit.blocks("10.0.0.1", "ada")


def test_a_guesser_is_answered_429_while_the_key_that_was_used_before_goes_on() -> None:
    with client("consumer", API_KEY=f"ada:{ALL},grace:{SECRETS[Role.READ]}") as consumer:
        assert consumer.post("/consumers/pause", headers={"X-API-Key": ALL}).status_code == 200
        statuses = [
            consumer.post("/session/start", json={"key": f"guess {number}"}).status_code for number in range(BURST + 9)
        ]
        assert (statuses[0], statuses[-1]) == (401, 429)
        unused = consumer.post("/consumers/pause", headers={"X-API-Key": SECRETS[Role.READ]})
        assert (unused.status_code, unused.json()["type"]) == (429, "/problems/too-many-guesses")
        assert int(unused.headers["retry-after"]) > 0
        assert consumer.post("/consumers/pause", headers={"X-API-Key": ALL}).status_code == 200
        assert 'api_key_refusals_total{reason="slowed"}' in consumer.get("/metrics").text


def test_a_key_is_given_all_roles_where_none_is_named() -> None:
    assert ApiKey("ada", secret=ALL).roles == [*Role]
