"""The network between services and brokers: it can be cut and slowed, with a link for each pair of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from relay import Link, Relays, advertised_by

Cut = Literal["silent", "refused"]
"""`silent` lets connections stand and passes nothing on; `refused` ends them and refuses new ones."""


class Network(Relays):
    """The links between services, each by its number from 0 to 7, and the brokers on these ports of 127.0.0.1."""

    def __init__(self, services: int, ports: Sequence[int]) -> None:
        self._ports = ports
        advertised = advertised_by(ports)
        self._of_service = [
            [Link(host, port, advertised, lambda host=host: host) for port in ports]  # type: ignore[misc]  # mypy cannot infer it
            for host in map(host_of, range(services))
        ]
        super().__init__([link for links in self._of_service for link in links])

    def bootstrap_servers(self, service: int) -> str:
        """Return where a service finds the brokers."""
        return ",".join(f"{host_of(service)}:{port}" for port in self._ports)

    @contextmanager
    def cut(self, service: int, brokers: Sequence[int], manner: Cut) -> Iterator[None]:
        """Cut a service off from these brokers for as long as the block takes."""
        links = [self._of_service[service][broker] for broker in brokers]
        self.each(links, Link.hold if manner == "silent" else Link.close)
        try:
            yield
        finally:
            self.each(links, Link.open)

    @contextmanager
    def slowed(self, service: int, seconds: float) -> Iterator[None]:
        """Have every request and every answer of a service take so much longer for as long as the block takes."""
        for link in self._of_service[service]:
            link.delay = seconds
        try:
            yield
        finally:
            for link in self._of_service[service]:
                link.delay = 0.0


def host_of(service: int) -> str:
    """Return the address at which a service finds the brokers; as long as theirs."""
    return f"127.0.0.{2 + service}"
