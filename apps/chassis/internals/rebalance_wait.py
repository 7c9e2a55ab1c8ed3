"""What a member can do while it waits for the rebalance of its group: a PROTECTION.

Until the rebalance ends, the broker answers nothing else on the connection of a JoinGroup or SyncGroup request. No
upstream issue is known. Reaches for the group and the member of such requests, the request timeout of a connection, and
the close of a consumer's coordinator.

Lost without it:

- A rebalance that takes longer than a request may: the member would ask again, and seem stuck meanwhile. Java's clients
  wait for a rebalance timeout and 5 s (KAFKA-7610).
- Commits: a seek fails, and a batch that took long is redelivered, although Kafka takes commits until the rebalance
  ends.
- A stop in time. Its member stays in the group, whose rebalance waits for it: a closed client tells the broker nothing.
  aiokafka even joins while it is closed, once a batch lets it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import Any

from aiokafka.client import ConnectionGroup
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaError
from aiokafka.protocol.group import LeaveGroupRequest

from apps.chassis.kafka.client_journal import ClientJournal

REACHES = (
    "aiokafka.conn:AIOKafkaConnection.__init__ uses _request_timeout",
    "aiokafka.consumer.group_coordinator:GroupCoordinator.close uses _closing, _coordination_task",
    "aiokafka.consumer.group_coordinator:BaseCoordinator.__init__ uses _client",
    "aiokafka.protocol.group:JoinGroupRequest.__init__ uses _group, _rebalance_timeout, _member_id",
    "aiokafka.protocol.group:LeaveGroupRequest.__init__(group, member_id)",
    "aiokafka.protocol.group:SyncGroupRequest.__init__ uses _group, _member_id",
)

Untyped = Any
"""A request or a node of a broker: aiokafka has no types for them."""
JOIN_LAPSE_S = 5.0
"""Seconds that a broker may answer after a rebalance had to end."""
WAITING = {"JoinGroup", "SyncGroup"}
"""The requests that are answered once the rebalance ends."""
SendLeave = Callable[[Untyped, LeaveGroupRequest], Awaitable[object]]
"""Takes the node and the request."""


class RebalanceWait:
    """Whether a client's member waits for a rebalance, and for how long it may."""

    def __init__(self, journal: ClientJournal) -> None:
        self._journal = journal
        self._longest_s = 0.0
        self._awaited: tuple[Untyped, Untyped] | None = None
        self._send_leave: SendLeave | None = None

    def connection_for(self, kind: str, usual: Untyped) -> Untyped:
        """Return the group of the connection for a request: a commit passes by the request that waits."""
        return ConnectionGroup.DEFAULT if kind == "OffsetCommit" and self._awaited else usual

    @asynccontextmanager
    async def patience(
        self, kind: str, node_id: Untyped, request: Untyped, connect: Callable[[], Awaitable[AIOKafkaConnection | None]]
    ) -> AsyncIterator[None]:
        """Let the answer to a request that waits for a rebalance take as long as that."""
        if kind == "JoinGroup":
            self._longest_s = request._rebalance_timeout / 1_000 + JOIN_LAPSE_S
            self._journal.joins(request._group, self._longest_s)
        connection = await connect() if kind in WAITING else None
        if connection is None:
            yield
            return
        usual, self._awaited = connection._request_timeout, (node_id, request)
        connection._request_timeout = max(usual, self._longest_s)
        try:
            await self._leave_if_ended()
            yield
        finally:
            connection._request_timeout, self._awaited = usual, None

    async def end(self, send: SendLeave) -> None:
        """Leave the group whose rebalance is awaited, or will be: a batch may have kept its member from joining."""
        self._send_leave = send
        await self._leave_if_ended()

    async def _leave_if_ended(self) -> None:
        if self._send_leave is not None and self._awaited is not None:
            node_id, request = self._awaited
            if request._member_id:
                with suppress(KafkaError):
                    await self._send_leave(node_id, LeaveGroupRequest(request._group, request._member_id))


def leaving(close: Callable[[GroupCoordinator], Awaitable[None]]) -> Callable[[GroupCoordinator], Awaitable[None]]:
    """Return the close of a coordinator that leaves a group whose rebalance is awaited: it would wait for its end."""

    @wraps(close)
    async def leave_and_close(coordinator: GroupCoordinator) -> None:
        client = coordinator._client
        leave = asyncio.create_task(client.rebalance.end(client.send))
        try:
            await close(coordinator)
        finally:
            leave.cancel()

    return leave_and_close
