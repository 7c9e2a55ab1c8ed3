"""Sets the quotas of clients with Kafka's own request, AlterClientQuotas, which aiokafka does not have."""

from typing import Literal

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Float64, Int16, Int32, Schema, String
from services import ask

TEXT = String("utf-8")
ENTITY = Array(("entity_type", TEXT), ("entity_name", TEXT))

Quota = Literal["consumer_byte_rate", "producer_byte_rate"]


class QuotasAnswer(Response):  # type: ignore[misc]  # aiokafka ships no types
    API_KEY = 49
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("entries", Array(("error_code", Int16), ("error_message", TEXT), ("entity", ENTITY))),
    )


class QuotasQuestion(RequestStruct):  # type: ignore[misc]  # as above
    API_KEY = 49
    API_VERSION = 0
    RESPONSE_TYPE = QuotasAnswer
    SCHEMA = Schema(
        ("entries", Array(("entity", ENTITY), ("ops", Array(("key", TEXT), ("value", Float64), ("remove", Boolean))))),
        ("validate_only", Boolean),
    )


class SetQuota(Request[QuotasQuestion]):  # type: ignore[misc]  # as above
    API_KEY = 49

    def __init__(self, client_id: str, quota: Quota, bytes_per_second: float | None) -> None:
        operation = (quota, bytes_per_second or 0.0, bytes_per_second is None)
        self._entries = [([("client-id", client_id)], [operation])]

    def build(self, kind: type[QuotasQuestion]) -> QuotasQuestion:
        return kind(self._entries, False)  # noqa: FBT003 - as the protocol has it


def set_quota(bootstrap_servers: str, client_id: str, quota: Quota, bytes_per_second: float | None) -> None:
    """Set a quota of the clients of a name; None removes it."""
    wanted = SetQuota(client_id, quota, bytes_per_second)
    ((code, *said),) = ask(bootstrap_servers, lambda admin: admin._send_request(wanted)).entries
    assert code == 0, said
