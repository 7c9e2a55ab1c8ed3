"""Runs the consumer with the handler of an example; Kafka misses it 6 s after a crash, so that tests wait less."""

import sys
from functools import partial
from importlib import import_module

from apps.chassis.service import serve
from apps.consumer.app import create_app
from apps.consumer.consuming.policy import Policy
from contracts.person import PEOPLE

if __name__ == "__main__":
    handlers = import_module(f"examples.{sys.argv[1]}").HANDLERS
    policies = {PEOPLE: Policy(session_timeout_s=6)}
    build = partial(create_app, handlers=handlers, policies=policies)
    serve(build, "consumer")
