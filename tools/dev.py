"""The demo with services that start again when their code changes, by uvicorn's `--reload`: for development alone."""

import os
import sys

from litestar import Litestar

from apps.chassis.service import settings_from_environment
from apps.chassis.setting_reading import read_settings
from apps.chassis.setting_types import WrongSetting
from apps.consumer.app import create_app as create_consumer
from apps.producer.app import create_app as create_producer
from tools import demo

SHARED = ("apps/chassis", "contracts")
"""Folders whose changes restart both services; a service also restarts for its own folder."""


def main() -> None:
    """Run the demo with both services under uvicorn."""
    try:
        settings = read_settings(os.environ)
    except WrongSetting as error:
        sys.exit(str(error))
    demo.main(
        _reloading("producer", settings.host, settings.producer_port),
        _reloading("consumer", settings.host, settings.consumer_port),
        lambda: print("\nA change in apps or contracts starts the services again that it belongs to."),
    )


def producer() -> Litestar:
    """Build the producer, without a warning about a server that is not for production."""
    return create_producer(settings_from_environment())


def consumer() -> Litestar:
    """Build the consumer, likewise."""
    return create_consumer(settings_from_environment())


def _reloading(service: str, host: str, port: int) -> tuple[str, ...]:
    watched = [part for folder in (f"apps/{service}", *SHARED) for part in ("--reload-dir", folder)]
    place = ("--host", host, "--port", str(port))
    return ("uvicorn", "--factory", f"tools.dev:{service}", *place, "--no-access-log", "--reload", *watched)


if __name__ == "__main__":
    main()
