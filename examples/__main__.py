"""Runs the consumer with the handler of an example: `python -m examples sqlite`, or `postgres`."""

import sys
from functools import partial
from importlib import import_module

from apps.chassis.service import serve
from apps.consumer.app import create_app

if __name__ == "__main__":
    handlers = import_module(f"examples.{sys.argv[1]}").HANDLERS
    serve(partial(create_app, handlers=handlers), "consumer")
