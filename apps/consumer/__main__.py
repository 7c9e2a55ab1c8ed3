"""Run the consumer: `python -m apps.consumer`, or the command `consumer`."""

from apps.chassis.command_line import run
from apps.consumer.app import DESCRIPTION, SERVICE, create_app
from apps.consumer.consuming.resource import settings_of
from apps.consumer.handlers import HANDLERS


def main() -> None:
    """Run the consumer as the arguments of the process ask for."""
    run(SERVICE, DESCRIPTION, create_app, settings_of(HANDLERS.values()))


if __name__ == "__main__":
    main()
