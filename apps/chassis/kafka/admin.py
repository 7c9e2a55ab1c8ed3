"""Ask the cluster through one admin client, which is opened on demand and replaced after a failure."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, TopicAuthorizationFailedError
from aiokafka.protocol.metadata import MetadataRequest

from apps.chassis.internals.client_parts import client_of_admin
from apps.chassis.kafka.clients import ClientOptions

T = TypeVar("T")

ATTEMPTS = 3
"""Attempts per question: the client asks a random broker, perhaps one that just died."""
CLOSE_TIMEOUT_S = 2.0


class Admin:
    """Holds the admin client of aiokafka."""

    def __init__(self, options: ClientOptions) -> None:
        self._options = options
        self._client: AIOKafkaAdminClient | None = None
        self._connecting = asyncio.Lock()

    async def client(self) -> AIOKafkaAdminClient:
        """Return the connected client. Raises `KafkaError` or `OSError` when it cannot connect."""
        async with self._connecting:
            if self._client is None:
                client = AIOKafkaAdminClient(**self._options)
                try:
                    await client.start()
                except BaseException:
                    await client.close()
                    raise
                self._client = client
            return self._client

    async def ask(self, question: Callable[[AIOKafkaAdminClient], Awaitable[T]]) -> T:
        """Return the answer to a question; after a failure ask again by a new client, which may find another broker.

        Raises `KafkaError` or `OSError` after three attempts, or at once for a missing permission.
        """
        for _ in range(ATTEMPTS - 1):
            try:
                return await question(await self.client())
            except (GroupAuthorizationFailedError, TopicAuthorizationFailedError):
                raise  # any broker says the same, and a closed client would fail what others ask with it
            except (KafkaError, OSError):
                await self.close()
        return await question(await self.client())

    async def answers(self, node: int, timeout_s: float) -> bool:
        """Return whether a broker answers, or only its quota holds up the answer.

        A client that another question closed meanwhile says nothing about that.
        """
        for _ in range(ATTEMPTS):
            client = await self.client()
            try:
                async with asyncio.timeout(timeout_s):
                    await client_of_admin(client).send(node, MetadataRequest([]))
            except (KafkaError, OSError) as error:  # `TimeoutError` is one of them
                if client is self._client:  # a quota explains silence, and no refused connection
                    return isinstance(error, TimeoutError) and self._options["client_id"].journal.is_held_up()
            else:
                return True
        return False

    async def close(self) -> None:
        """Close the client within 2 s; the next question opens another."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await client.close()
