"""The demo with services that start again when their code changes, by uvicorn's `--reload`: for development alone."""

import os
import sys

from apps.chassis.setting_reading import read_settings
from apps.chassis.setting_types import WrongSetting
from tools import demo

WATCHED = ("apps", "contracts")


def main() -> None:
    """Run the demo with both services under uvicorn."""
    try:
        settings = read_settings(os.environ)
    except WrongSetting as error:
        sys.exit(str(error))
    demo.main(
        _reloading("producer", settings.host, settings.producer_port),
        _reloading("consumer", settings.host, settings.consumer_port),
        lambda: print(f"\nA change in {' or '.join(WATCHED)} starts the services again."),
    )


def _reloading(service: str, host: str, port: int) -> tuple[str, ...]:
    watched = [part for folder in WATCHED for part in ("--reload-dir", folder)]
    place = ("--host", host, "--port", str(port))
    return ("uvicorn", "--factory", f"apps.{service}.app:create_app", *place, "--no-access-log", "--reload", *watched)


if __name__ == "__main__":
    main()
