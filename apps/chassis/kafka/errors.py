"""The errors of a failed call to Kafka, for code that does not use the client library."""

from aiokafka.errors import CorruptRecordException, KafkaError

KAFKA_ERRORS = (KafkaError, OSError)
"""`TimeoutError` is an `OSError`."""


class NoTurn(OSError):
    """Other calls of this instance had all connections that such calls may have: Kafka was not asked."""


class TooDeep(CorruptRecordException):  # type: ignore[misc]  # aiokafka ships no types
    """Kafka answered in time, but the records before the wanted one in its compressed batch take too long to skip."""

    def __init__(self, topic: str, partition: int, offset: int, seconds: float) -> None:
        super().__init__(
            f"{topic}-{partition} offset {offset} cannot be read within {seconds:g} s: it stands deep in a compressed "
            "batch, and all records before it must be decompressed first"
        )

    def __str__(self) -> str:
        return str(self.args[0])
