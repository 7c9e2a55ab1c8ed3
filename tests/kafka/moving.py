"""A broker that moves: clients find it at one address of the loopback network, and later at another (Linux).

The bootstrap address stays where it is, as that of a load balancer does, and names the address that holds now.
"""

from relay import Link, Relays, advertised_by

BOOTSTRAP, FIRST, SECOND = "127.0.0.4", "127.0.0.5", "127.0.0.6"


class Moving(Relays):
    """Relays to a broker on a port of 127.0.0.1, whose answers send its clients elsewhere."""

    def __init__(self, port: int) -> None:
        self.bootstrap_servers = f"{BOOTSTRAP}:{port}"
        self._at = FIRST
        advertised = advertised_by([port])
        self._links = {host: Link(host, port, advertised, lambda: self._at) for host in (BOOTSTRAP, FIRST, SECOND)}
        super().__init__([self._links[BOOTSTRAP], self._links[FIRST]])

    def vanish(self) -> None:
        """End all connections, and listen nowhere."""
        self.each(self.links, Link.close)

    def come_back_elsewhere(self) -> None:
        """Be found at another address; nobody listens at the first one any more."""
        self._at = SECOND
        self.links = [self._links[BOOTSTRAP], self._links[SECOND]]
        self.each(self.links, Link.open)
