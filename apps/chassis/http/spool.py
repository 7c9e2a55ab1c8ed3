"""Keeps answers that cannot be sent yet: small ones in memory, larger ones in temporary files of bounded size."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Callable
from typing import IO

BUFFER_BYTES = 64 * 1024
"""Bytes of a spool that stay in memory, and the size of its reads and writes."""
MAX_SPOOL_BYTES = 128 * 1024 * 1024
MAX_SPOOLS_BYTES = 256 * 1024 * 1024
"""Limits in bytes: of one spool, and of all spools of a stream."""


def new_file() -> IO[bytes]:
    """Open an empty file that is deleted when it is closed."""
    return tempfile.TemporaryFile(buffering=0)


class Spools:
    """Opens spools, and limits their total size."""

    def __init__(
        self,
        max_bytes: int = MAX_SPOOLS_BYTES,
        max_bytes_each: int = MAX_SPOOL_BYTES,
        *,
        buffer_bytes: int = BUFFER_BYTES,
        open_file: Callable[[], IO[bytes]] = new_file,
    ) -> None:
        self.max_bytes = max_bytes
        self.max_bytes_each = max_bytes_each
        self.buffer_bytes = buffer_bytes
        self.open_file = open_file
        self.used_bytes = 0

    def open(self) -> "Spool":
        """Return an empty spool, which must be closed."""
        return Spool(self)


class Spool:
    """Bytes that are written in order, and then read from the beginning.

    `full` asks the writer to stop. Bytes written after that are kept, so that nothing is lost.
    """

    def __init__(self, spools: Spools) -> None:
        self.size = 0
        self._spools = spools
        self._buffer = bytearray()
        self._file: IO[bytes] | None = None
        self._refused = False

    @property
    def too_large(self) -> bool:
        """Whether the spool alone has reached its limit: it would not fit at another time either."""
        return self.size >= self._spools.max_bytes_each

    @property
    def full(self) -> bool:
        """Whether the spool has reached its limit, or the file system is full."""
        return self._refused or self.too_large or self._spools.used_bytes >= self._spools.max_bytes

    async def write(self, data: bytes) -> None:
        """Append some bytes."""
        self.size += len(data)
        self._spools.used_bytes += len(data)
        self._buffer += data
        if len(self._buffer) > self._spools.buffer_bytes and not self._refused:
            await asyncio.to_thread(self._flush)

    async def read(self) -> AsyncGenerator[bytes, None]:
        """Yield all bytes from the beginning; no write may follow."""
        if self._file is not None:
            await asyncio.to_thread(self._file.seek, 0)
            while piece := await asyncio.to_thread(self._file.read, BUFFER_BYTES):
                yield piece
        if self._buffer:
            yield bytes(self._buffer)

    def close(self) -> None:
        """Delete the content."""
        self._spools.used_bytes -= self.size
        self.size = 0
        self._buffer.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _flush(self) -> None:
        try:
            if self._file is None:
                self._file = self._spools.open_file()
            while self._buffer:
                del self._buffer[: self._file.write(self._buffer)]
        except OSError:
            self._refused = True
