"""Write log lines to standard error, without waiting long for whatever reads them."""

import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import TextIO

RETRY_S = 0.001
"""Seconds between two attempts to write where there is no room."""
Write = Callable[[bytes], int]
"""Writes as much as there is room for, and returns how many bytes. Raises `BlockingIOError` without any."""


class LogOutput(logging.StreamHandler[TextIO]):
    """Writes each line at once, so that a crash loses none; when nothing reads them, counts the lines that are lost.

    A pipe takes 64 KiB, a terminal less. A write to one that is full would block the event loop, and with it every
    call, until something reads: a reader has `wait_s` seconds, and none once a line was lost. A later line says how
    many were.
    """

    def __init__(self, wait_s: float = 0.1) -> None:
        super().__init__()
        self._wait_s = wait_s
        self._lost = 0
        self._is_cut = False
        self._opened = ExitStack()
        self._write_some = _writer_to(self.stream, self._opened)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it."""
        if self._write_some is None:
            super().emit(record)
            return
        try:
            lines = [*([_report(self._lost)] if self._lost else []), record]
            text = "\n" * self._is_cut + "".join(self.format(line) + self.terminator for line in lines)
            self._write(self._write_some, text.encode("utf-8", "backslashreplace"))
        except Exception:  # noqa: BLE001 - as the standard library's: the program goes on without the line
            self.handleError(record)

    def close(self) -> None:
        """Close what was opened beside the stream; later lines are written to that."""
        self._write_some = None
        self._opened.close()
        super().close()

    def _write(self, write_some: Write, text: bytes) -> None:
        left, until = text, time.monotonic() + (0 if self._lost else self._wait_s)
        while left:
            try:
                left = left[write_some(left[: select.PIPE_BUF]) :]
            except BlockingIOError:
                if time.monotonic() >= until:
                    self._lost += left != b"\n"
                    self._is_cut = self._is_cut or left is not text
                    return
                time.sleep(RETRY_S)  # no condition to wait for: a full terminal says that it has room
        self._lost, self._is_cut = 0, False


def _writer_to(stream: TextIO | None, opened: ExitStack) -> Write | None:
    """Return what writes to a stream; None where the stream's own way never waits: to a file, or to nothing."""
    try:
        descriptor = stream.fileno() if stream else None
    except OSError:
        descriptor = None
    if descriptor is None or stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
        return None
    if stat.S_ISSOCK(mode):
        connection = opened.enter_context(socket.socket(fileno=os.dup(descriptor)))
        return lambda text: connection.send(text, socket.MSG_DONTWAIT)
    with suppress(OSError):  # opened again, because flags of standard error are those of the caller's shell too
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
        again = os.open(f"/proc/self/fd/{descriptor}", flags)
        opened.callback(os.close, again)
        return partial(os.write, again)
    return partial(_write_where_room, descriptor)


def _write_where_room(descriptor: int, text: bytes) -> int:
    """Write to a pipe of another user, as containers have it. No other process must write to it at the same time."""
    if not select.select([], [descriptor], [], 0)[1]:
        raise BlockingIOError
    return os.write(descriptor, text)


def _report(lost: int) -> logging.LogRecord:
    message = "%d lines of this log were lost, because nothing read it"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (lost,), None)
