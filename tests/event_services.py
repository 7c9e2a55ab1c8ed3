"""Runs a service that carries events alone: `python -m tests.event_services producer`, or `consumer HANDLER`."""

import sys
from functools import partial

from apps.chassis.service import serve
from apps.consumer import app as consumer
from apps.consumer.consuming.policy import DEFAULT, Policy
from apps.consumer.consuming.resource import AnyHandler
from apps.consumer.handlers import handle_nothing
from apps.producer import app as producer
from tests.event import EVENTS, Event
from tests.handlers import HANDLERS

STREAMS = [EVENTS]

create_producer = partial(producer.create_app, streams=STREAMS)
create_consumer = partial(consumer.create_app, streams=STREAMS, handlers={}, policies={})


def run_producer() -> None:
    """Serve until SIGTERM, as `python -m apps.producer` does."""
    serve(create_producer, "producer", STREAMS)


def run_consumer(handle: AnyHandler[Event] = handle_nothing, policy: Policy = DEFAULT) -> None:
    """Serve until SIGTERM, as `python -m apps.consumer` does."""
    create_app = partial(create_consumer, handlers={EVENTS: handle}, policies={EVENTS: policy})
    serve(create_app, "consumer", STREAMS)


if __name__ == "__main__":
    if sys.argv[1] == "producer":
        run_producer()
    else:
        run_consumer(*HANDLERS[sys.argv[2]])
