"""Questions and answers between two processes, over a pair of connected sockets."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from enum import StrEnum
from itertools import count
from typing import Any

import msgspec

from apps.chassis.background import Background

ANSWER_S = 4.0
"""Seconds for an answer: a health check takes up to 3 while Kafka does not answer, and its callers wait for 5."""
SIZE_BYTES = 4
"""Bytes of the size in front of each message."""
ASK_ALL = "ask_all"
"""The key of an application's state with a function that asks all workers; the only process of a service has none."""


class Question(StrEnum):
    """What a supervisor asks its workers, and a worker its supervisor about all of them."""

    HEALTH = "health"
    METRICS = "metrics"
    TURN = "turn"


Answer = Callable[[str, str], Awaitable[Any]]
"""Answer a question about streams, named with commas between them."""


class NoAnswer(Exception):
    """The other process did not answer in time, or has ended."""


class Message(msgspec.Struct, array_like=True):
    """A question, or without one the content of the answer to the question of that number."""

    number: int
    question: str = ""
    about: str = ""
    content: bytes = b""


class Link:
    """One end of a connection: asks the other one, and answers its questions."""

    def __init__(self, connected: socket.socket, answer: Answer) -> None:
        self._socket = connected
        self._answer = answer
        self._numbers = count()
        self._open: dict[int, asyncio.Future[bytes]] = {}
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        """Answer questions until the other end closes the connection, or sends something other than a message."""
        reader, self._writer = await asyncio.open_connection(sock=self._socket)
        background = Background()
        try:
            async with background.open():
                while True:
                    size = int.from_bytes(await reader.readexactly(SIZE_BYTES))
                    received = msgspec.msgpack.decode(await reader.readexactly(size), type=Message)
                    if received.question:
                        background.start(self._reply(received), f"answer about {received.question}")
                    elif waiting := self._open.pop(received.number, None):
                        waiting.set_result(received.content)
        except (EOFError, ConnectionError, msgspec.DecodeError):
            pass
        finally:
            self._writer.close()
            self._writer = None
            for waiting in self._open.values():
                waiting.cancel()

    async def ask(self, question: str, about: str = "", within_s: float = ANSWER_S) -> bytes:
        """Return the other end's answer, in MessagePack. Raises `NoAnswer`."""
        number = next(self._numbers)
        waiting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._open[number] = waiting
        try:
            self._send(Message(number, question, about))
            await asyncio.wait([waiting], timeout=within_s)
        finally:
            self._open.pop(number, None)
        if waiting.done() and not waiting.cancelled():
            return waiting.result()
        raise NoAnswer

    async def _reply(self, asked: Message) -> None:
        content = msgspec.msgpack.encode(await self._answer(asked.question, asked.about))
        self._send(Message(asked.number, content=content))

    def _send(self, message: Message) -> None:
        if self._writer is None:
            raise NoAnswer
        data = msgspec.msgpack.encode(message)
        self._writer.write(len(data).to_bytes(SIZE_BYTES) + data)
