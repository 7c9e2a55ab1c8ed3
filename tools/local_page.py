"""Runs a service so that the live page and the producer of this machine find each other.

`python -m tools.local_page producer` is `python -m apps.producer` with PRODUCER_URL and CORS_ORIGINS for this machine,
where they are not set. Without CONSUMER_PORT a second consumer listens on the next free port.
"""

import os
import runpy
import sys
from collections.abc import Mapping

from apps.chassis.setting_reading import read_settings
from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import Settings
from tools.ports import why_taken
from tools.starters import end_with_starters

HERE = ("localhost", "127.0.0.1")
"""What people of this machine call it; to a browser each is an origin of its own."""

CONSUMERS = 4
"""Ports, from the consumer's own on, whose pages may call the producer."""


def with_local_page(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with what the page of this machine needs, where nobody has set it, be it to nothing.

    With a setting that is wrong it comes back as it is, for the service to say so.
    """
    try:
        settings = read_settings(environment)
        hosts: tuple[str, ...] = (settings.host,)
        if settings.host in {*HERE, "0.0.0.0", "::", "::1"}:  # noqa: S104 - compared, not bound
            hosts = (*HERE, "[::1]") if ":" in settings.host else HERE
        derived = {
            "PRODUCER_URL": f"http://{hosts[0]}:{settings.producer_port}",
            "CORS_ORIGINS": ",".join(
                f"http://{host}:{port}" for port in _ports_from(settings.consumer_port) for host in hosts
            ),
        }
        read_settings({**environment, **derived})
    except WrongSetting:
        return dict(environment)
    return {**derived, **environment}


def with_free_port(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with the first free port for a consumer, where CONSUMER_PORT is not set."""
    default = Settings().consumer_port
    free = next((port for port in _ports_from(default) if not why_taken(port)), default)
    if free == default or environment.get("CONSUMER_PORT", "").strip():
        return dict(environment)
    print(f"port {default} is taken, so this consumer listens on {free}", file=sys.stderr)
    return {**environment, "CONSUMER_PORT": str(free)}


def _ports_from(first: int) -> range:
    return range(first, min(first + CONSUMERS, 65_536))


if __name__ == "__main__":
    end_with_starters()
    os.environ.update(with_local_page(os.environ))
    service = f"apps.{sys.argv.pop(1)}"
    if service == "apps.consumer":
        os.environ.update(with_free_port(os.environ))
    runpy.run_module(service, run_name="__main__", alter_sys=True)
