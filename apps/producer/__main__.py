"""Run the producer: `python -m apps.producer`, or the command `producer`."""

from apps.chassis.command_line import run
from apps.producer.app import DESCRIPTION, SERVICE, create_app


def main() -> None:
    """Run the producer as the arguments of the process ask for."""
    run(SERVICE, DESCRIPTION, create_app)


if __name__ == "__main__":
    main()
