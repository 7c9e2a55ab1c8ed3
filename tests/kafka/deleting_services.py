"""Run the service that ROLE names, for events that may be deleted; the consumer adds what it gets to LEDGER."""

import os
from functools import partial

from apps.chassis.service import serve
from apps.consumer.consuming.batch import Batch
from contracts.stream import Deletion, Stream
from tests.event import Event
from tests.event_services import create_consumer, create_producer
from tests.handlers import append

DELETABLE = Stream("events", Event, key=lambda event: event.id, deletes=True)


async def noting(batch: Batch[Event | Deletion]) -> None:
    """Add the key and the text of each event, or `deleted`."""
    for record in batch:
        text = "deleted" if isinstance(record.value, Deletion) else record.value.text
        append("LEDGER", f"{(record.key or b'').decode()}: {text}\n")


if __name__ == "__main__":
    if os.environ["ROLE"] == "producer":
        create_app = partial(create_producer, streams=[DELETABLE])
        serve(create_app, "producer", [DELETABLE])
    else:
        create_app = partial(create_consumer, streams=[DELETABLE], handlers={DELETABLE: noting})
        serve(create_app, "consumer", [DELETABLE])
