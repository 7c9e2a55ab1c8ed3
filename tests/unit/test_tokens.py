"""Bearer tokens: which are accepted, what they allow, and where the keys come from that verify them."""

import asyncio
import base64
import hmac
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from litestar import Litestar
from litestar.connection import ASGIConnection
from litestar.testing import TestClient
from samples import until

from apps.chassis.http.authorization import Access
from apps.chassis.http.callers import InvalidToken, KeysOutOfReach, UnknownKey
from apps.chassis.http.guess_limit import BURST, GuessLimit
from apps.chassis.http.roles import Role
from apps.chassis.http.token_keys import MAX_BYTES, FetchedKeys, read_key_set
from apps.chassis.http.tokens import ALGORITHMS, LEEWAY_S, Tokens
from apps.chassis.service import check_anonymous
from apps.chassis.setting_reading import read_settings
from apps.chassis.setting_types import WrongSetting
from tests.event_services import create_consumer, create_producer

ISSUER, AUDIENCE = "https://login.example.com/realms/people", "people-over-kafka"
KEY = "the-key-of-sixteen-characters"
INVALID = 'Bearer error="invalid_token"'
APPS: dict[str, Callable[..., Litestar]] = {"producer": create_producer, "consumer": create_consumer}
RSA = RSAKey.generate_key(2_048, {"kid": "rsa"})
KEYS: dict[str, Key] = {
    "rsa": RSA,
    "ec": ECKey.generate_key("P-256", {"kid": "ec"}),
    "ed": OKPKey.generate_key("Ed25519", {"kid": "ed"}),
}
KEY_OF = {"RS256": "rsa", "PS256": "rsa", "ES256": "ec", "EdDSA": "ed", "Ed25519": "ed"}
OTHER = RSAKey.generate_key(2_048, {"kid": "rsa"})

Client = TestClient[Litestar]
pytestmark = pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")  # `EdDSA` has a newer name


def key_set(*keys: Key, **more: str) -> bytes:
    return json.dumps({"keys": [{**key.as_dict(private=False), **more} for key in keys]}).encode()


def token(key: Key = RSA, alg: str = "RS256", header: dict[str, Any] | None = None, **claims: Any) -> str:  # noqa: ANN401
    """Sign a token that is accepted, but for what is given; a claim that is None is left out."""
    now = int(time.time())
    whole = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": now + 600, "iat": now, "roles": ["read"], **claims}
    given = {name: value for name, value in {"alg": alg, "kid": key.kid, **(header or {})}.items() if value is not None}
    return jwt.encode(given, {name: one for name, one in whole.items() if one is not None}, key, algorithms=[alg])


def by(bearer: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {bearer}"}


def forged(header: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """Replace the header and the signature of a token that is accepted."""
    encoded = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=")
    signed = encoded + b"." + token().split(".")[1].encode()
    return (signed + b"." + base64.urlsafe_b64encode(sign(signed)).rstrip(b"=")).decode()


def signed_with_public_key(what: bytes) -> Callable[[bytes], bytes]:
    return lambda signed: hmac.digest(what, signed, "sha256")


PUBLIC = RSA.as_pem(private=False)
NOW = int(time.time())
REFUSED: dict[str, Callable[[], str]] = {
    "no algorithm": lambda: forged({"alg": "none", "kid": "rsa"}, lambda _: b""),
    "no algorithm, in capitals": lambda: forged({"alg": "None", "kid": "rsa"}, lambda _: b""),
    "HMAC with the public key": lambda: forged({"alg": "HS256", "kid": "rsa"}, signed_with_public_key(PUBLIC)),
    "HMAC with the modulus": lambda: forged(
        {"alg": "HS256", "kid": "rsa"}, signed_with_public_key(str(RSA.as_dict(private=False)["n"]).encode())
    ),
    "HMAC with a secret of its own": lambda: token(OctKey.import_key("s" * 32, {"kid": "rsa"}), "HS256"),
    "an asymmetric algorithm that is not accepted": lambda: token(alg="RS384"),
    "an algorithm of another key": lambda: forged({"alg": "ES256", "kid": "rsa"}, lambda _: b"0" * 64),
    "the key of another": lambda: token(OTHER),
    "a key that the token brings": lambda: token(OTHER, header={"jwk": OTHER.as_dict(private=False)}),
    "no kid": lambda: token(header={"kid": None}),
    "an unknown kid": lambda: token(header={"kid": "unknown"}),
    "a kid that is no text": lambda: forged({"alg": "RS256", "kid": ["rsa"]}, lambda _: b""),
    "a changed claim": lambda: ".".join(
        [*token().split(".")[:1], *token(sub="grace").split(".")[1:2], token().split(".")[2]]
    ),
    "no signature": lambda: token().rsplit(".", 1)[0] + ".",
    "an unknown header that must be understood": lambda: forged(
        {"alg": "RS256", "kid": "rsa", "crit": ["x"], "x": 1}, lambda _: b""
    ),
    "a subject that cannot be shown": lambda: token(sub="ada\nops"),
    "another issuer": lambda: token(iss="https://evil.example"),
    "no issuer": lambda: token(iss=None),
    "another audience": lambda: token(aud="another-service"),
    "other audiences": lambda: token(aud=["another-service", "and-another"]),
    "no audience": lambda: token(aud=None),
    "an end that has passed": lambda: token(exp=int(time.time()) - LEEWAY_S - 1),
    "no end": lambda: token(exp=None),
    "an end that is no number": lambda: token(exp="never"),
    "an end that is not finite": lambda: token(exp=float("nan")),
    "a beginning to come": lambda: token(nbf=int(time.time()) + LEEWAY_S + 60),
    "no subject": lambda: token(sub=None),
    "an empty subject": lambda: token(sub=""),
    "a subject that is no text": lambda: token(sub=["ada"]),
    "a subject that is too long": lambda: token(sub="a" * 256),
    "no token": lambda: "",
    "three dots": lambda: "...",
    "no UTF-8": lambda: "\xff.\xff.\xff",
    "claims that are a list": lambda: "e30.W10.",
    "a header that is a list": lambda: "WyJhbGciXQ.e30.",
    "a header that is a text": lambda: "ImFsZyI.e30.",
    "a very long one": lambda: "a" * 60_000,
}


@contextmanager
def client(service: str, **environment: str) -> Iterator[Client]:
    settings = read_settings({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", **environment})
    with TestClient(APPS[service](settings)) as client:
        yield client


def settings_of(where: Path | str, **more: str) -> dict[str, str]:
    return {"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE, "JWT_JWKS": str(where), **more}


@pytest.fixture(scope="module")
def jwks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("jwks") / "keys.json"
    file.write_bytes(key_set(*KEYS.values()))
    return file


@pytest.fixture(scope="module")
def guarded(jwks: Path) -> Iterator[dict[str, Client]]:
    """Both services with tokens, and one key."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(client(name, **settings_of(jwks, API_KEY=KEY))) for name in APPS}


def test_the_samples_use_each_algorithm() -> None:
    assert set(KEY_OF) == set(ALGORITHMS)


@pytest.mark.parametrize("alg", KEY_OF)
def test_a_token_of_each_algorithm_is_accepted_by_both_services_next_to_keys(
    guarded: dict[str, Client], alg: str
) -> None:
    accepted = by(token(KEYS[KEY_OF[alg]], alg, roles=["read", "send"]))
    assert guarded["consumer"].get("/consumers/status", headers=accepted).status_code == 200
    assert guarded["producer"].get("/schema/openapi.json", headers=accepted).status_code == 200
    assert guarded["producer"].post("/producers/events", headers=accepted).status_code == 400  # for its body
    assert guarded["consumer"].get("/consumers/status", headers={"X-API-Key": KEY}).status_code == 200
    assert guarded["consumer"].get("/session", headers={**accepted, "X-API-Key": KEY}).json()["name"] == "default"


@pytest.mark.parametrize("case", REFUSED)
def test_a_token_that_is_not_accepted_is_answered_401_and_says_so(
    guarded: dict[str, Client], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer, noted = guarded["consumer"], list[str]()
    authenticator = consumer.app.state["access"].authenticator
    monkeypatch.setattr(authenticator, "_guesses", GuessLimit())
    monkeypatch.setattr(authenticator.refused, "note", noted.append)
    for path in ("/consumers/status", "/session"):
        answer = consumer.get(path, headers={b"Authorization": f"Bearer {REFUSED[case]()}".encode("latin-1")})
        assert (answer.status_code, answer.headers.get("www-authenticate")) == (401, INVALID), answer.text
    assert noted == ["expired" if case == "an end that has passed" else "wrong"] * 2


def test_a_probe_with_an_unknown_token_does_not_wait_for_the_identity_provider(
    guarded: dict[str, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()

    async def prepare(token: str) -> None:
        asked.append(token)

    monkeypatch.setattr(guarded["consumer"].app.state["access"].authenticator.tokens, "prepare", prepare)
    for path in ("/livez", "/health-check"):
        guarded["consumer"].get(path, headers=by("unknown"))
    assert asked == []
    assert guarded["consumer"].get("/session", headers=by("unknown")).status_code == 401
    assert asked == ["unknown"]


def test_clocks_may_differ_a_little_and_a_token_may_have_several_audiences(guarded: dict[str, Client]) -> None:
    now = int(time.time())
    for claims in (
        {"exp": now - LEEWAY_S + 10},
        {"nbf": now + LEEWAY_S - 10},
        {"aud": ["another-service", AUDIENCE]},
    ):
        answer = guarded["consumer"].get("/consumers/status", headers=by(token(**claims)))
        assert answer.status_code == 200


def test_a_call_without_a_token_is_told_that_it_may_have_one(guarded: dict[str, Client]) -> None:
    for headers in ({}, {"Authorization": "Basic YWRhOmFkYQ=="}):
        answer = guarded["consumer"].get("/consumers/status", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'ApiKey header="X-API-Key", Bearer'
        assert "bearer token" in answer.json()["detail"]
    with client("consumer", API_KEY=KEY, API_KEY_READS="true") as consumer:
        answer = consumer.get("/consumers/status", headers=by(token()))
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'ApiKey header="X-API-Key"')


@pytest.mark.parametrize(
    ("roles", "status"),
    [
        (["read"], 200),
        (["admin", "read", 7, None], 200),
        (["admin", "READ", ""], 403),
        ([], 403),
        (None, 403),
        ({"read": True}, 403),
        ("read operate", 200),
        (["operate", "send"], 403),
    ],
)
def test_a_token_may_do_what_its_roles_allow_and_other_names_give_none(
    guarded: dict[str, Client],
    roles: Any,  # noqa: ANN401
    status: int,
) -> None:
    answer = guarded["consumer"].get("/consumers/status", headers=by(token(roles=roles)))
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["detail"] == "this call needs the role read; token:ada does not have it"


@pytest.mark.parametrize(
    ("claim", "mapping", "claims", "roles"),
    [
        ("realm_access.roles", "", {"realm_access": {"roles": ["read", "operate"]}}, ["read", "operate"]),
        ("https://example.com/roles", "", {"https://example.com/roles": ["send"]}, ["send"]),
        ("scope", "", {"scope": "openid read read:sensitive"}, ["read", "read:sensitive"]),
        ("a.b.c", "", {"a": {"b": ["read"]}}, []),
        ("groups", "on call=operate, on call=read,dev=read", {"groups": ["on call", "x"]}, ["read", "operate"]),
        ("groups", "dev=read", {"groups": ["operate", "dev"]}, ["read"]),
    ],
)
def test_roles_are_read_where_the_settings_say(
    jwks: Path, claim: str, mapping: str, claims: dict[str, Any], roles: list[str]
) -> None:
    with client("consumer", **settings_of(jwks, JWT_ROLES_CLAIM=claim, JWT_ROLES=mapping)) as consumer:
        seen = consumer.get("/session", headers=by(token(**{"roles": None, **claims}))).json()
        assert seen == {"name": "token:ada", "roles": roles}


def test_the_log_of_an_operator_action_names_the_subject(
    guarded: dict[str, Client], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name, roles in (("grace", ["operate"]), ("ada", ["read"])):
        guarded["consumer"].post("/consumers/pause", headers=by(token(sub=name, roles=roles)))
    (refused,) = [one.getMessage() for one in caplog.records if ": refused: " in one.getMessage()]
    assert "token:ada does not have it" in refused
    assert not [one for one in caplog.records if "eyJ" in one.getMessage()]


def test_the_page_and_its_calls_need_no_cookie_behind_a_proxy_that_sends_a_token(guarded: dict[str, Client]) -> None:
    consumer, forwarded = guarded["consumer"], by(token(roles=["read", "operate"]))
    assert consumer.get("/", headers=forwarded).status_code == 200
    assert consumer.get("/session", headers=forwarded).json() == {"name": "token:ada", "roles": ["read", "operate"]}
    tail = consumer.head("/consumers/messages/stream", headers=forwarded)
    assert tail.status_code == 503  # for want of a Kafka
    own = {**forwarded, "Origin": "http://testserver.local", "Sec-Fetch-Site": "same-origin"}
    assert consumer.post("/consumers/pause", headers=own).status_code == 200
    foreign = {**forwarded, "Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert consumer.post("/consumers/pause", headers=foreign).json()["type"] == "/problems/foreign-origin"


def test_guessing_tokens_is_slowed_and_a_token_in_use_goes_on(jwks: Path) -> None:
    with client("consumer", **settings_of(jwks, API_KEY=KEY)) as consumer:
        used = by(token())
        assert consumer.get("/consumers/status", headers=used).status_code == 200
        statuses = [consumer.get("/session", headers=by(f"guess{number}")).status_code for number in range(BURST + 9)]
        assert (statuses[0], statuses[-1]) == (401, 429)
        assert consumer.get("/consumers/status", headers=by(token(sub="grace"))).status_code == 429
        assert consumer.get("/consumers/status", headers={"X-API-Key": KEY}).status_code == 429
        assert consumer.get("/consumers/status", headers=by(token(exp=int(time.time()) + 60))).status_code == 200
        assert 'api_key_refusals_total{reason="slowed"}' in consumer.get("/metrics").text


@pytest.mark.anyio
async def test_a_long_answer_ends_with_the_token_of_its_caller(guarded: dict[str, Client]) -> None:
    app = guarded["consumer"].app
    access: Access = app.state["access"]
    expiring = token(exp=int(time.time()) - LEEWAY_S + 2)
    authorization = [(b"authorization", f"Bearer {expiring}".encode())]
    scope: Any = {"type": "http", "app": app, "client": None, "headers": authorization}
    connection: Any = ASGIConnection(scope)
    assert access.may_read(connection)

    async def pieces() -> Any:  # noqa: ANN401
        for _ in range(1_000):
            await asyncio.sleep(0.01)
            yield b"event"

    found = [piece async for piece in access.while_allowed(connection, pieces(), checked_every_s=-1)]
    assert 0 < len(found) < 1_000


def test_the_openapi_document_names_the_scheme(guarded: dict[str, Client], jwks: Path) -> None:
    document = guarded["consumer"].get("/schema/openapi.json", headers=by(token())).json()
    scheme = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    assert document["components"]["securitySchemes"]["Token"] == scheme
    asked = document["paths"]["/consumers/stop"]["post"]["security"]
    assert asked == [{"ApiKey": ["operate"]}, {"Session": ["operate"]}, {"Token": ["operate"]}]
    assert jwks


def test_keys_in_a_file_are_exchanged_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(key_set(RSA))
    with client("consumer", **settings_of(file)) as consumer:

        def status_of(key: Key) -> int:
            return consumer.get("/consumers/status", headers=by(token(key))).status_code

        assert (status_of(RSA), status_of(OTHER)) == (200, 401)
        none_left = b'{"keys": []}', (401, 401)
        for content, expected in ((key_set(OTHER), (401, 200)), (b"[]", (401, 200)), none_left):
            file.write_bytes(content)
            settled = time.time() - 60 - len(content)
            os.utime(file, (settled, settled))
            assert (status_of(RSA), status_of(OTHER)) == expected


WITHOUT_KEYS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a list": lambda: b"[]",
    "no keys": lambda: b'{"keys": []}',
    "a key that is a number": lambda: b'{"keys": [1]}',
    "a key without its parts": lambda: b'{"keys": [{"kty": "RSA", "kid": "a"}]}',
    "a type that is a number": lambda: b'{"keys": [{"kty": 1, "kid": "a"}]}',
    "deep": lambda: b"[" * 100_000,
    "too large": lambda: b" " * (MAX_BYTES + 1),
    "for encryption": lambda: key_set(RSA, use="enc"),
    "no kid": lambda: key_set(RSA, kid=""),
    "a weak key": lambda: key_set(RSAKey.generate_key(1_024, {"kid": "weak"})),
    "a secret": lambda: json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}]}).encode(),
}


@pytest.mark.parametrize("case", WITHOUT_KEYS)
def test_a_set_without_a_key_that_verifies_stops_the_start(case: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(WITHOUT_KEYS[case]())
    with pytest.raises(WrongSetting, match=r"^JWT_JWKS: (it is|no key in it) "):
        create_consumer(read_settings(settings_of(file)))


def test_a_key_is_used_for_its_own_algorithm_alone() -> None:
    tokens = tokens_of(KnownKeys(key_set(RSA, alg="PS256")))
    assert tokens.verify(token(alg="PS256")).name == "token:ada"
    with pytest.raises(InvalidToken):
        tokens.verify(token(alg="RS256"))


class KnownKeys:
    failure: str | None = None

    def __init__(self, content: bytes) -> None:
        self.keys = read_key_set(content)


def tokens_of(source: Any) -> Tokens:  # noqa: ANN401
    return Tokens(ISSUER, [AUDIENCE], source, "roles", {role: frozenset({role}) for role in Role})


@pytest.mark.slow
@given(st.lists(st.binary(max_size=300) | st.from_regex(rb'\{"alg": ?"[A-Z]S256", ?"kid": ?.{1,9}\}'), max_size=4))
def test_no_text_in_place_of_a_token_fails_in_another_way(parts: list[bytes]) -> None:
    guess = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
    with pytest.raises(InvalidToken):
        tokens_of(KnownKeys(key_set(RSA))).verify(guess)


class Issuer:
    """Serves keys, and what else is set, at an address of this machine."""

    def __init__(self) -> None:
        self.content, self.status, self.headers = key_set(RSA), 200, dict[str, str]()
        self.answered, self.trickles = 0, False
        self.answering = threading.Event()
        self.answering.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.answering.wait(10)
                issuer.answered += 1
                self.send_response(issuer.status)
                for name, value in issuer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(issuer.content)
                with suppress(OSError):  # the caller has gone
                    while issuer.trickles:
                        self.wfile.write(b" ")
                        time.sleep(0.02)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/keys"
        threading.Thread(target=partial(self.server.serve_forever, poll_interval=0.02), daemon=True).start()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.answering.set()
    issuer.trickles = False
    issuer.server.shutdown()
    issuer.server.server_close()


NEXT = ECKey.generate_key("P-256", {"kid": "next"})


async def name_of(tokens: Tokens, bearer: str) -> str:
    await tokens.prepare(bearer)
    return tokens.verify(bearer).name


@pytest.mark.anyio
async def test_a_token_with_a_new_key_has_the_keys_fetched_again(issuer: Issuer) -> None:
    source = FetchedKeys(issuer.address, pause_s=0.05)
    tokens = tokens_of(source)
    async with source.open():
        assert await name_of(tokens, token()) == "token:ada"
        issuer.content = key_set(NEXT)
        await until(lambda: not source._fetched.is_set())  # the pause after the fetch before is over
        assert await name_of(tokens, token(NEXT, "ES256")) == "token:ada"
        with pytest.raises(UnknownKey):
            tokens.verify(token())  # its key is gone, though its signature was verified before


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY", "http_proxy"])
@pytest.mark.anyio
async def test_no_proxy_answers_for_an_issuer_on_this_machine(
    issuer: Issuer, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, issuer.address)
    source = FetchedKeys("http://127.0.0.1:1/keys", pause_s=60)
    async with source.open():
        with pytest.raises(KeysOutOfReach):
            await name_of(tokens_of(source), token())
    assert not issuer.answered


@pytest.mark.anyio
async def test_made_up_keys_cause_one_fetch_a_while(issuer: Issuer) -> None:
    source = FetchedKeys(issuer.address, pause_s=60)
    tokens = tokens_of(source)
    async with source.open():
        for number in range(20):
            with pytest.raises(UnknownKey):
                await name_of(tokens, token(header={"kid": str(number)}))
            await asyncio.sleep(0.001)  # a fetch could begin
        assert issuer.answered == 1


@pytest.mark.anyio
async def test_known_keys_stay_in_use_while_the_address_is_down(
    issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    source = FetchedKeys(issuer.address, pause_s=0.02)
    tokens = tokens_of(source)
    async with source.open():
        assert await name_of(tokens, token()) == "token:ada"
        issuer.status = 500
        await until(lambda: not source._fetched.is_set())
        with pytest.raises(UnknownKey):  # the known keys were right a moment ago ...
            tokens.verify(token(NEXT, "ES256"))
        with pytest.raises(KeysOutOfReach):  # ... and may not be now
            await name_of(tokens, token(NEXT, "ES256"))
        assert await name_of(tokens, token()) == "token:ada"
        assert "it is answered 500; the keys fetched before stay in use" in caplog.text
        issuer.status, issuer.content = 200, key_set(RSA, NEXT)
        await until(lambda: source.failure is None)
        assert await name_of(tokens, token(NEXT, "ES256")) == "token:ada"


@pytest.mark.parametrize(
    "content", [b'{"keys": []}', key_set(RSA, use="enc")], ids=["no key", "none that can verify a signature"]
)
@pytest.mark.anyio
async def test_an_issuer_that_takes_back_its_last_key_has_its_tokens_refused(
    issuer: Issuer, jwks: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with client("consumer", **settings_of(jwks, API_KEY=KEY)) as consumer:
        authenticator = consumer.app.state["access"].authenticator
        source = FetchedKeys(issuer.address, pause_s=0.02)
        authenticator.tokens = tokens = tokens_of(source)
        async with source.open():
            assert await name_of(tokens, token()) == "token:ada"
            issuer.content = content
            await until(lambda: not source._fetched.is_set())
            with pytest.raises(UnknownKey):
                await name_of(tokens, token(NEXT, "ES256"))
            with pytest.raises(UnknownKey):
                tokens.verify(token())
        health = consumer.get("/health-check", headers={"X-API-Key": KEY}).json()
    assert health["detail"].endswith("no token is accepted: no key of JWT_JWKS can verify one")
    assert caplog.text.count("no key in it has a kid and can verify a signature; every token is refused") == 1


@pytest.mark.parametrize(
    ("status", "content", "headers", "failure"),
    [
        (200, b" " * (MAX_BYTES + 1), {}, f"it is larger than {MAX_BYTES} bytes"),
        (200, b"<html>", {}, "it is not a set of keys"),
        (302, b"", {"Location": "http://127.0.0.1:1/keys"}, "it is answered 302"),
        (200, b"", {"Content-Length": "9"}, "peer closed"),
    ],
)
@pytest.mark.anyio
async def test_an_answer_that_is_no_set_of_keys_is_a_failure(
    issuer: Issuer, status: int, content: bytes, headers: dict[str, str], failure: str
) -> None:
    issuer.status, issuer.content, issuer.headers = status, content, headers
    source = FetchedKeys(issuer.address)
    async with source.open():
        await source.refresh()
        assert failure in str(source.failure)


@pytest.mark.parametrize("trickles", [False, True])
@pytest.mark.anyio
async def test_an_address_that_does_not_answer_in_time_has_no_keys(
    issuer: Issuer,
    trickles: bool,  # noqa: FBT001 - pytest gives it by name
) -> None:
    issuer.trickles = trickles
    if not trickles:
        issuer.answering.clear()
    source = FetchedKeys(issuer.address, timeout_s=0.2)
    async with source.open():
        with pytest.raises(KeysOutOfReach):
            await name_of(tokens_of(source), token())
        await until(lambda: source.failure == "no answer within 0.2 s")


@pytest.mark.anyio
async def test_a_call_that_waits_for_the_keys_holds_up_no_other(issuer: Issuer) -> None:
    issuer.answering.clear()
    source = FetchedKeys(issuer.address, timeout_s=60)
    async with source.open():
        waiting = asyncio.create_task(name_of(tokens_of(source), token()))
        await until(source._wanted.is_set)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done()
        issuer.answering.set()
        assert await waiting == "token:ada"


@pytest.mark.anyio
async def test_keys_that_nobody_fetches_hold_up_no_call() -> None:
    with pytest.raises(KeysOutOfReach):
        await name_of(tokens_of(FetchedKeys("http://127.0.0.1:1/", timeout_s=0.01)), token())


def test_a_call_waits_for_the_keys(issuer: Issuer) -> None:
    issuer.answering.clear()
    with client("consumer", **settings_of(issuer.address)) as consumer:
        source = consumer.app.state["access"].authenticator.tokens._source

        def answer_once_wanted() -> None:
            while not source._wanted.is_set() and not issuer.answering.is_set():
                time.sleep(0.01)
            issuer.answering.set()

        threading.Thread(target=answer_once_wanted, daemon=True).start()
        answer = consumer.get("/consumers/status", headers=by(token()))
        issuer.answering.set()
        assert answer.status_code == 200


def test_a_service_starts_without_the_issuer_and_answers_503_until_it_is_there(issuer: Issuer) -> None:
    issuer.status = 500
    with client("consumer", **settings_of(issuer.address, API_KEY=KEY)) as consumer:
        answer = consumer.get("/consumers/status", headers=by(token()))
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        health = consumer.get("/health-check", headers={"X-API-Key": KEY}).json()
        assert health["detail"].endswith("the token keys (JWT_JWKS) cannot be fetched: it is answered 500")
        assert consumer.get("/consumers/status", headers={"X-API-Key": KEY}).status_code == 200


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"JWT_AUDIENCE": ""}, "JWT_AUDIENCE: is missing, but JWT_ISSUER is set"),
        ({"JWT_ISSUER": "", "JWT_AUDIENCE": "", "JWT_JWKS": ""}, "JWT_ISSUER: is missing, but JWT_ROLES is set"),
        ({"JWT_JWKS": "http://login.example.com/keys"}, "JWT_JWKS: expected a file, or an address like https://"),
        ({"JWT_JWKS": "http://127.0.0.1.example.com/keys"}, "JWT_JWKS: expected a file, or an address like https://"),
        ({"JWT_JWKS": "https://user:secret@login.example.com/"}, "JWT_JWKS: expected a file, or an address like http"),
        ({"JWT_JWKS": "ftp://login.example.com/keys"}, "JWT_JWKS: expected a file, or an address like https://"),
        ({"JWT_JWKS": "file:///etc/keys"}, "JWT_JWKS: expected a file, or an address like https://"),
        ({"JWT_JWKS": "/no/such/file"}, "JWT_JWKS: cannot read '/no/such/file': No such file or directory"),
        ({"JWT_JWKS": "/dev"}, "JWT_JWKS: it is not a regular file"),
        ({"JWT_ROLES": "dev=admin"}, "JWT_ROLES: expected VALUE=ROLE (a role is one of send, read, "),
        ({"JWT_ROLES": "dev"}, "JWT_ROLES: expected VALUE=ROLE"),
    ],
)
def test_wrong_settings_stop_the_start_with_one_line(jwks: Path, changed: dict[str, str], said: str) -> None:
    with pytest.raises(WrongSetting) as raised:
        create_consumer(read_settings({**settings_of(jwks, JWT_ROLES="dev=read"), **changed}))
    assert str(raised.value).startswith(said)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "address", ["https://login.example.com:8443/keys?v=2", "http://localhost/a", "http://[::1]:9/"]
)
def test_an_address_is_not_asked_for_the_start(address: str) -> None:
    assert read_settings(settings_of(address)).jwt_jwks == address


def test_without_the_extra_the_start_says_how_to_install_it(jwks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.chassis.setting_checks.find_spec", {"httpx": True}.get)
    with pytest.raises(WrongSetting, match=r"^JWT_ISSUER: needs the extra oidc: uv sync --extra oidc$"):
        read_settings(settings_of(jwks))


def test_tokens_let_a_service_listen_beyond_this_machine_and_close_its_metrics(jwks: Path) -> None:
    check_anonymous(read_settings(settings_of(jwks, METRICS_PUBLIC="false")), "192.0.2.1")
    with pytest.raises(WrongSetting, match="JWT_ISSUER"):
        check_anonymous(read_settings({}), "192.0.2.1")
