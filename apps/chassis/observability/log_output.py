"""Write log lines to standard error, without waiting long for whoever reads them."""

import logging
import os
import select
import stat
from typing import TextIO


class LogOutput(logging.StreamHandler[TextIO]):
    """Writes each line at once, so that a crash loses none; when nobody reads them, counts the lines that are lost.

    A pipe takes 64 KiB. A write to one that is full would block the event loop, and with it every call, until somebody
    reads: a reader has `wait_s` seconds, and none once a line was lost. A later line says how many were.
    """

    def __init__(self, wait_s: float = 0.1) -> None:
        super().__init__()
        self._wait_ms = 1_000 * wait_s
        self._lost = 0
        self._is_cut = False
        self._room = select.poll()
        if (descriptor := _that_may_block(self.stream)) is not None:
            self._room.register(descriptor, select.POLLOUT)
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it."""
        if self._descriptor is None:
            super().emit(record)
            return
        try:
            lines = [*([_report(self._lost)] if self._lost else []), record]
            text = "\n" * self._is_cut + "".join(self.format(line) + self.terminator for line in lines)
            self._write(self._descriptor, text.encode("utf-8", "backslashreplace"))
        except Exception:  # noqa: BLE001 - as the standard library's: the program goes on without the line
            self.handleError(record)

    def _write(self, descriptor: int, text: bytes) -> None:
        left = text
        while left:
            if not self._room.poll(0 if self._lost else self._wait_ms):
                self._lost += 1
                self._is_cut = self._is_cut or left is not text
                return
            left = left[os.write(descriptor, left[: select.PIPE_BUF]) :]  # of so much there is room
        self._lost, self._is_cut = 0, False


def _that_may_block(stream: TextIO) -> int | None:
    """Return the descriptor of a stream; None for one without, and for a file: a disk waits for no reader."""
    try:
        descriptor = stream.fileno()
    except OSError:
        return None
    return None if stat.S_ISREG(os.fstat(descriptor).st_mode) else descriptor


def _report(lost: int) -> logging.LogRecord:
    message = "%d lines of this log were lost, because nothing read it"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (lost,), None)
