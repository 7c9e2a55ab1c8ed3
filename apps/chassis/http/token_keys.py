"""The public keys of an identity provider (JWKS), by which bearer tokens are verified. Needs the extra `oidc`."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import httpx
import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import Key, OctKey, RSAKey, import_key

from apps.chassis.background import Background
from apps.chassis.http.watched_file import WatchedFile, read_regular_file

log = logging.getLogger(__name__)

VARIABLE = "JWT_JWKS"
TIMEOUT_S = 5.0
"""Seconds for fetching the keys: a call that waits for them is still answered within 10."""
PAUSE_S = 10.0
"""Seconds between two fetches: tokens with made-up keys cause no more."""
REFRESH_S = 600.0
"""Seconds after which keys are fetched again without being asked for: the issuer may have removed one."""
MAX_BYTES = 256 * 1024
"""Largest set of keys, in bytes."""
MIN_RSA_BITS = 2_048
NO_KEY = "no key in it has a kid and can verify a signature; every token is refused"

KeysById = Mapping[str, Key]


class _KeySet(msgspec.Struct):
    keys: list[dict[str, Any]]


def read_key_set(content: bytes) -> KeysById:
    """Return the public keys of a JWKS by `kid`; those that cannot verify a signature are skipped.

    The result is empty when the issuer has withdrawn its last key. Raises `ValueError` when the content is no JWKS.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")
    try:
        given = msgspec.json.decode(content, type=_KeySet).keys
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError('it is not a set of keys (JWKS): {"keys": [...]}') from None
    return {key.kid: key for one in given if (key := _read_key(one)) is not None and key.kid}


def _read_key(given: dict[str, Any]) -> Key | None:
    try:
        key = import_key(given)
    except (JoseError, ValueError, TypeError, AttributeError):  # what the library raises for a wrong type depends on it
        return None
    if isinstance(key, OctKey) or key.get("use", "sig") != "sig":
        return None
    is_weak = isinstance(key, RSAKey) and key.public_key.key_size < MIN_RSA_BITS
    return None if is_weak else key


class KeySource(Protocol):
    """Where the keys come from; `failure` says why they are not those of now, and is None when they are."""

    failure: str | None

    @property
    def keys(self) -> KeysById:
        """The keys that are known."""

    def check(self) -> None:
        """Raise `OSError` or `ValueError` when a service should not start with these keys."""

    async def refresh(self) -> None:
        """Get the keys again, unless that was done a moment ago."""

    def open(self) -> AbstractAsyncContextManager[None]:
        """Keep the keys up to date until the end of the block."""


class FileKeys:
    """The keys of a file, which is read again when it changes."""

    failure: str | None = None

    def __init__(self, file: Path) -> None:
        self._file = file
        self._watched = WatchedFile(file, VARIABLE, self._read)

    def _read(self) -> KeysById:
        keys = read_key_set(read_regular_file(self._file))
        if not keys:
            log.error("%s: %s", VARIABLE, NO_KEY)
        return keys

    def check(self) -> None:
        """Raise `OSError` or `ValueError` when the file has no keys."""
        if not read_key_set(read_regular_file(self._file)):
            raise ValueError(NO_KEY)

    @property
    def keys(self) -> KeysById:
        """The keys in the file."""
        self._watched.look()
        return self._watched.keys or {}

    async def refresh(self) -> None:
        """Do nothing: each look at `keys` looks at the file."""

    def open(self) -> AbstractAsyncContextManager[None]:
        """Do nothing."""
        return nullcontext()


class FetchedKeys:
    """The keys at an address: fetched at the start, when a token names an unknown one, and every ten minutes.

    When a fetch fails, the known keys stay in use, and the next fetch follows ten seconds later. A set that has no
    usable key was fetched: the known ones are gone.
    """

    def __init__(self, address: str, pause_s: float = PAUSE_S, timeout_s: float = TIMEOUT_S) -> None:
        self.keys: KeysById = {}
        self.failure: str | None = "not fetched yet"
        self._address = address
        self._pause_s = pause_s
        self._timeout_s = timeout_s
        self._wanted = asyncio.Event()
        self._fetched = asyncio.Event()

    def check(self) -> None:
        """Do nothing: a service starts while the issuer is down."""

    async def refresh(self) -> None:
        """Have the keys fetched, unless that was tried within the last ten seconds, and wait for it."""
        if not self._fetched.is_set():
            self._wanted.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout_s):
                    await self._fetched.wait()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Fetch the keys in the background until the end of the block."""
        background = Background()
        async with background.open():
            background.start(self._keep_fetching(), "the fetching of token keys")
            yield

    async def _keep_fetching(self) -> None:
        trusted = await asyncio.to_thread(ssl.create_default_context)  # reads many certificates
        is_remote = self._address.startswith("https://")  # a proxy could answer `http://` with keys of its own
        async with httpx.AsyncClient(verify=trusted, timeout=self._timeout_s, trust_env=is_remote) as client:
            while True:
                await self._fetch(client)
                self._wanted.clear()
                self._fetched.set()
                await asyncio.sleep(self._pause_s)
                self._fetched.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0 if self.failure else REFRESH_S):
                        await self._wanted.wait()

    async def _fetch(self, client: httpx.AsyncClient) -> None:
        failure: str | None = None
        before = self.failure, bool(self.keys)
        try:
            async with asyncio.timeout(self._timeout_s):
                self.keys = read_key_set(await self._download(client))
        except (TimeoutError, httpx.TimeoutException):
            failure = f"no answer within {self._timeout_s:g} s"
        except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
            failure = " ".join(str(error).split()) or type(error).__name__
        self.failure = failure
        if before != (failure, bool(self.keys)):
            self._log()

    def _log(self) -> None:
        if self.failure is None and self.keys:
            log.info("%s: token keys in use: %s", VARIABLE, ", ".join(self.keys))
        elif self.failure is None:
            log.error("%s: %s", VARIABLE, NO_KEY)
        else:
            kept = "the keys fetched before stay in use" if self.keys else "tokens are refused until it works"
            log.error("%s: cannot fetch the token keys: %s; %s", VARIABLE, self.failure, kept)

    async def _download(self, client: httpx.AsyncClient) -> bytes:
        content = b""
        # no compressed answer: a small one may become a huge one; no redirect: it could lead to another protocol
        async with client.stream("GET", self._address, headers={"Accept-Encoding": "identity"}) as answer:
            if answer.status_code != HTTPStatus.OK:
                raise ValueError(f"it is answered {answer.status_code}")
            async for piece in answer.aiter_raw():
                content += piece
                if len(content) > MAX_BYTES:
                    break
        return content


def key_source(where: str) -> KeySource:
    """Return the keys of a file or an address."""
    return FetchedKeys(where) if "://" in where else FileKeys(Path(where))
