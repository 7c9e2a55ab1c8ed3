from types import SimpleNamespace
from typing import cast

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment

from apps.chassis.kafka.consumer_groups import Member, members

pytestmark = pytest.mark.anyio

OF_CONNECT = b"\x00\x01\x00\x00\xff\xff\xff\xff"
OF_A_CONSUMER = ConsumerProtocolMemberAssignment(0, [("events", [2, 0]), ("orders", [7])], b"").encode()


class Admin:
    """A client of a Kafka that has one group, with one member."""

    def __init__(self, protocol_type: str, assignment: bytes) -> None:
        member = ("member", "client", "/10.0.0.1", b"", assignment)
        group = (0, "group", "Stable", protocol_type, "", [member], 0)
        self._client = SimpleNamespace(send=self._send)
        self._answer = SimpleNamespace(groups=[group])

    async def find_coordinator(self, _: str) -> int:
        return 0

    async def _send(self, *_: object) -> SimpleNamespace:
        return self._answer


async def described(protocol_type: str, assignment: bytes) -> tuple[str, list[Member]]:
    return await members(cast(AIOKafkaAdminClient, Admin(protocol_type, assignment)), "group", "events")


async def test_a_member_of_a_group_of_consumers_has_its_partitions_of_the_topic() -> None:
    state, (member,) = await described("consumer", OF_A_CONSUMER)
    assert (state, member) == ("Stable", Member("member", "client", "10.0.0.1", [0, 2]))


@pytest.mark.parametrize("assignment", [OF_CONNECT, b"\x00", OF_A_CONSUMER])
async def test_a_group_of_another_protocol_is_called_what_it_is(assignment: bytes) -> None:
    assert await described("connect", assignment) == ("Stable connect group: its members cannot be told", [])


@pytest.mark.parametrize("assignment", [b"", b"\x00", OF_CONNECT, b"\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00"])
async def test_a_member_whose_assignment_cannot_be_read_has_no_partitions(assignment: bytes) -> None:
    _, (member,) = await described("consumer", assignment)
    assert member.partitions == []
