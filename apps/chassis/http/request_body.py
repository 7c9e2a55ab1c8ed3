"""Read request bodies strictly and within bounds; never treat an incomplete body as complete.

Both services use this reader for all calls. A body has the media type that its call accepts, is UTF-8, and may be
compressed. A request without a body needs no media type.
"""

import asyncio
import json
import math
import re
import time
from codecs import BOM_UTF8
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar

import msgspec
from litestar.connection import Request
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody
from litestar.types import Scope

from apps.chassis.http.admission import Share, share_of
from apps.chassis.http.authorization import check_again
from apps.chassis.http.connection_limits import ALL_HERE
from apps.chassis.http.content_encoding import ACCEPTED_CODINGS, WINDOW_BITS, Decompressor
from apps.chassis.http.json_faults import split_fault
from apps.chassis.http.problem_kinds import BAD_BODY
from apps.chassis.http.problems import RETRY_AFTER, BrokenBody, bad_body, problem
from apps.chassis.http.repeated_names import RepeatedName, check_names
from apps.chassis.http.request_headers import headers_of
from apps.chassis.internals.http_framing import BROKE_OFF, Refused

T = TypeVar("T")

JSON, NDJSON = "application/json", "application/x-ndjson"
MAX_REQUEST_BYTES = 64 * 1024
"""Largest body, in bytes, of a call that carries no records."""
BODY_ERRORS = (
    BAD_BODY,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
)
"""Errors that every call may answer that changes something: each may have a body."""
PARAMETER = re.compile(r';\s*(?P<name>[^\s;=]+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^;]*))')
"""A parameter of a media type (RFC 9110, section 5.6.6)."""
MARK_BYTES = 4
"""Bytes at the beginning of a text that identify its encoding."""
DECODED_BODY = "decoded_body"
"""Set in the scope of a request: its decoded body."""
STARTS_OF_JSON = b"{["
MAX_REMEMBERED_BYTES = 200
"""Longest headers about a body, together, that are remembered."""


class BodyHead(NamedTuple):
    """The properties of a body that the request head declares."""

    media_type: str
    charset: str
    coding: str


def head_of(scope: Scope) -> BodyHead:
    """Return what a request head declares about its body. Raises 415 for an unsupported content coding or charset."""
    headers = headers_of(scope)
    media_type, coding = headers.get(b"content-type", b""), headers.get(b"content-encoding", b"")
    is_short = len(media_type) + len(coding) <= MAX_REMEMBERED_BYTES
    head = (_parsed if is_short else _parsed.__wrapped__)(media_type, coding)
    if head.coding and head.coding not in WINDOW_BITS:
        detail = f"the content encoding {head.coding[:40]!r} is not supported: send {ACCEPTED_CODINGS} or none"
        raise problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail, headers={"Accept-Encoding": ACCEPTED_CODINGS})
    if head.charset not in {"", "utf-8", "utf8"}:
        detail = f"the charset {head.charset[:40]!r} is not supported: send UTF-8"
        raise problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)
    return head


@lru_cache(maxsize=64)  # nearly all callers send the same headers
def _parsed(content_type: bytes, content_encoding: bytes) -> BodyHead:
    media_type, _, rest = content_type.decode("latin-1").partition(";")
    charsets = {
        re.sub(r"\\(.)", r"\1", one["quoted"] or one["plain"] or "").strip().lower()
        for one in PARAMETER.finditer(f";{rest}")
        if one["name"].lower().partition("*")[0] == "charset"  # mail writes `charset*` (RFC 2231)
    }
    codings = [coding.strip() for coding in content_encoding.decode("latin-1").lower().split(",")]
    return BodyHead(
        media_type.strip().lower(),
        ", ".join(sorted(charsets)),
        ", ".join(coding for coding in codings if coding not in {"", "identity"}),
    )


def check_media_type(media_type: str, accepted: Collection[str]) -> None:
    """Raise 415 when a call does not accept bodies of a media type.

    Pages of other sites may send plain text and forms without asking first, but neither JSON nor NDJSON.
    """
    if media_type not in accepted:
        given = media_type[:40] or "a body without a content type"
        detail = f"expected {' or '.join(accepted)}, got {given}"
        raise problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail, headers={"Accept": ", ".join(accepted)})


async def read_whole(
    request: Request[Any, Any, Any],
    accepted: Collection[str],
    max_bytes: int,
    *,
    times_in_memory: int = 1,
    hint: str = "",
) -> bytes:
    """Return a body, decoded and without a byte order mark.

    Raises 415; 408 after 60 s; 413 when it is larger than `max_bytes` (`hint` is appended to the message); 400 when
    it breaks off; 503 when there is no room for `times_in_memory` copies of it, or when it stalls while others need it;
    401 or 403 when its caller has lost its role meanwhile.
    """
    head, share = head_of(request.scope), share_of(request.scope)
    check = partial(_check_piece, head.media_type, accepted, max_bytes, hint)
    if request.scope.get(ALL_HERE) and not head.coding:  # the server has all of it: a small one costs a third
        piece, _ = _piece_of(await request.receive())
        body: bytes | bytearray = _without_mark(piece)
        check(len(body))
    else:
        if not head.coding:
            check(int(headers_of(request.scope).get(b"content-length", b"0")))
        body = await _read_arriving(request, head, share, check)
        await check_again(request)
    share.require(times_in_memory * len(body))
    return bytes(body)


async def _read_arriving(
    request: Request[Any, Any, Any], head: BodyHead, share: Share, check: Callable[[int], None]
) -> bytearray:
    body = bytearray()
    async for piece in read_pieces(request, head, until=time.monotonic() + share.slow_body_s):
        body += piece
        check(len(body))
        if not share.set_arriving(len(body)):
            raise share.busy()
    share.set_arriving(0)
    return body


def _check_piece(media_type: str, accepted: Collection[str], max_bytes: int, hint: str, size: int) -> None:
    """Raise 415 or 413 for the first `size` bytes of a body; a call without a body needs no media type."""
    if size:
        check_media_type(media_type, accepted)
    if size > max_bytes:
        raise BrokenBody(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {max_bytes} bytes{hint}")


async def read_pieces(
    request: Request[Any, Any, Any], head: BodyHead, ending: asyncio.Event | None = None, until: float = math.inf
) -> AsyncGenerator[bytes, None]:
    """Yield a body of any length as it arrives, decoded and without a byte order mark.

    Raises `BrokenBody` when the body is incomplete: its caller disconnects or pauses for 60 s, the service stops, or
    the time `until` is reached, by the monotonic clock.
    """
    decoder = Decompressor(head.coding) if head.coding else None
    start, begun, more = b"", False, True
    while more:
        piece, more = await _receive(request, ending, until)
        for decoded in decoder.decode(piece) if decoder else (piece,):
            if begun and decoded:
                yield decoded
            elif not begun and len(start := start + decoded) >= MARK_BYTES:
                yield _without_mark(start)
                begun = True
            if decoder:
                await asyncio.sleep(0)  # a small piece may decode to many pieces
    if decoder:
        decoder.check_end()
    if not begun and start:
        yield _without_mark(start)


async def _receive(request: Request[Any, Any, Any], ending: asyncio.Event | None, until: float) -> tuple[bytes, bool]:
    """Return the next piece of a body, and whether more follow. Raises `BrokenBody`."""
    all_here = request.scope.get(ALL_HERE)
    return _piece_of(
        await (request.receive() if all_here else _wait_for_more(request, ending or asyncio.Event(), until))
    )


def _piece_of(message: Any) -> tuple[bytes, bool]:  # noqa: ANN401 - an ASGI event
    if message["type"] == "http.disconnect":
        why: Refused = message.get("why", BROKE_OFF)
        raise BrokenBody(why.status, why.detail)
    return message.get("body", b""), message.get("more_body", False)


async def _wait_for_more(request: Request[Any, Any, Any], ending: asyncio.Event, until: float) -> Any:  # noqa: ANN401 - an ASGI event
    """Wait until more arrives, the service ends, other calls need the room, or it takes too long."""
    share = share_of(request.scope)
    arriving, end = asyncio.ensure_future(request.receive()), asyncio.ensure_future(ending.wait())
    timeout_s = min(share.slow_body_s, until - time.monotonic())
    try:
        with share.waiting(arriving.cancel):
            await asyncio.wait([arriving, end], timeout=max(timeout_s, 0), return_when=asyncio.FIRST_COMPLETED)
        if arriving.done() and not arriving.cancelled():
            return arriving.result()
    finally:
        arriving.cancel()
        end.cancel()
    if share.dismissed:
        reason = "the body stalled while other calls needed the room"
    elif ending.is_set():
        reason = "the service is ending and reads no more of the body"
    else:
        late = "nothing more of the body arrived" if until == math.inf else "the body did not arrive"
        raise BrokenBody(HTTPStatus.REQUEST_TIMEOUT, f"{late} within {share.slow_body_s:g} s")
    raise BrokenBody(HTTPStatus.SERVICE_UNAVAILABLE, reason, {"Retry-After": RETRY_AFTER})


def _without_mark(text: bytes | bytearray) -> bytes:
    """Return text without a byte order mark. Raises `BrokenBody` when it is UTF-16 or UTF-32."""
    if len(text) > 1 and text[0] in STARTS_OF_JSON and text[1]:  # a second byte of 0 is one of UTF-16 or UTF-32
        return bytes(text)
    encoding = json.detect_encoding(text[:MARK_BYTES]) if text else "utf-8"
    if not encoding.startswith("utf-8"):
        reason = f"the body is {encoding.upper()}: send UTF-8"
        raise BrokenBody(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, reason)
    return bytes(text).removeprefix(BOM_UTF8)


async def read_json(request: Request[Any, Any, Any], kind: type[T]) -> T:
    """Return the decoded JSON of a body; an empty body means `{}`.

    Raises 400 with the JSON path of the error, and the errors of `read_whole`.
    """
    body = await _read_small(request) or b"{}"
    try:
        asked = msgspec.json.decode(body, type=kind)
        check_names(body)
    except msgspec.MsgspecError as error:
        path, detail = split_fault(error, body)
        raise bad_body(detail, path) from None
    except RepeatedName as error:
        raise bad_body(str(error), f"$.{error.name}") from None
    except UnicodeDecodeError:
        raise bad_body("the body is not valid UTF-8") from None
    except RecursionError:
        raise bad_body("the body is nested too deeply") from None
    request.scope[DECODED_BODY] = asked  # type: ignore[literal-required]  # a key of our own
    return asked


async def _read_small(request: Request[Any, Any, Any]) -> bytes:
    """Return a body without records. It takes no room: operators' calls are read while records take all of it."""
    return await read_whole(request, [JSON], MAX_REQUEST_BYTES, times_in_memory=0)


async def refuse_content(request: Request[Any, Any, Any]) -> None:
    """Refuse a body where a call takes none: what it names, like a stream, would be ignored.

    `{}` and `null` are allowed. One that is not JSON is refused as such: a page of another site could send it unasked.
    """
    body = await _read_small(request)
    if b"".join(body.split()) not in {b"", b"{}", b"null"}:
        raise bad_body("this call takes no body: its parameters are those of its path and query")


def documents_body(examples: Mapping[str, tuple[Mapping[str, Any], Any]], *, required: bool) -> type[Operation]:
    """Return an operation for a route that reads the body itself: by media type its JSON schema and example."""
    body = RequestBody(
        required=required,
        content={
            media_type: OpenAPIMediaType(schema=dict(schema), example=example)  # type: ignore[arg-type]  # written as it is
            for media_type, (schema, example) in examples.items()
        },
    )

    @dataclass
    class WithBody(Operation):
        def __post_init__(self) -> None:
            self.request_body = body  # takes the place of the one that Litestar did not find in the signature

    return WithBody


def schema_of(kind: Any) -> dict[str, Any]:  # noqa: ANN401 - any type that msgspec knows
    """Return the JSON schema of a type that does not refer to itself, with all of its parts in place."""
    (schema,), parts = msgspec.json.schema_components([kind], ref_template="{name}")
    return dict(_in_place(schema, parts))


def _in_place(schema: Any, parts: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any part of a schema
    if isinstance(schema, list):
        return [_in_place(one, parts) for one in schema]
    if not isinstance(schema, dict):
        return schema
    others = {name: _in_place(one, parts) for name, one in schema.items() if name not in {"$ref", "mapping"}}
    return {**_in_place(parts[schema["$ref"]], parts), **others} if "$ref" in schema else others


def either(kind: Any, *ways: Sequence[str]) -> dict[str, Any]:  # noqa: ANN401 - any Struct
    """Return the JSON schema of a Struct whose fields are given in one of some ways: those of one, and no others."""
    null = {"type": "null"}
    schema = schema_of(kind)
    alternatives = [
        {
            "required": list(way),
            "properties": {name: {"not": null} if name in way else null for name in schema["properties"]},
        }
        for way in ways
    ]
    return {**schema, "oneOf": alternatives}
