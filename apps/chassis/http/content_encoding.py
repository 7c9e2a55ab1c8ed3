"""Decodes compressed request bodies (RFC 9110, section 8.4), piece by piece and within bounds."""

import zlib
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from apps.chassis.http.problems import BrokenBody

WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""The zlib window bits of each content coding. Raw deflate is missing: its damage would go unnoticed."""
ACCEPTED_CODINGS = "gzip, deflate"
PIECE_BYTES = 64 * 1024
"""Largest decoded piece in bytes: nothing larger is allocated, even if a body claims it."""
MAX_RATIO = 200
RATIO_FREE_BYTES = 64 * 1024 * 1024
"""A body may decode to this many bytes, or to `MAX_RATIO` times its own size. Records shrink to about a tenth."""
MAX_EMPTY_MEMBERS = 1_000
"""Gzip members without content that a body may have: they cost time, and no limit of decoded bytes ends them."""


class Decompressor:
    """Decodes one compressed body, which may consist of several gzip members.

    Raises `BrokenBody` for a body that is damaged, ends too early, is followed by other bytes, or decodes to far more
    than text ever does.
    """

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._stream: Any = None  # zlib's own class has no public name
        self._streams = 0
        self._empty_streams = 0
        self._stream_begun_at = 0
        self._taken = 0
        self._given = 0

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Yield the decoded bytes of the next piece of the body."""
        self._taken += len(data)
        while data or self._stream is not None:
            if self._stream is None:
                self._stream = self._next_stream()
            try:
                piece = self._stream.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise _damaged(f"the body is not valid {self._coding}: {error}") from None
            if piece:
                self._given += len(piece)
                self._check_ratio()
                yield piece
            if self._stream.eof:
                data, self._stream = self._stream.unused_data, None
                self._check_empty_members()
                continue
            data = self._stream.unconsumed_tail
            if not data and len(piece) < PIECE_BYTES:
                return

    def check_end(self) -> None:
        """Check that the body is complete."""
        if self._stream is not None:
            raise _damaged(f"the {self._coding} of the body ends too early")

    def _next_stream(self) -> Any:  # noqa: ANN401 - see `_stream`
        self._streams += 1
        if self._coding == "deflate" and self._streams > 1:
            raise _damaged("bytes follow the end of the deflate of the body")
        return zlib.decompressobj(WINDOW_BITS[self._coding])

    def _check_empty_members(self) -> None:
        self._empty_streams += self._given == self._stream_begun_at
        self._stream_begun_at = self._given
        if self._empty_streams > MAX_EMPTY_MEMBERS:
            raise _damaged(f"the body has over {MAX_EMPTY_MEMBERS} gzip members without content")

    def _check_ratio(self) -> None:
        if self._given > max(RATIO_FREE_BYTES, MAX_RATIO * self._taken):
            detail = f"the body decodes to over {RATIO_FREE_BYTES} bytes and {MAX_RATIO} times its size"
            raise BrokenBody(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)


def _damaged(reason: str) -> BrokenBody:
    return BrokenBody(HTTPStatus.BAD_REQUEST, reason)
