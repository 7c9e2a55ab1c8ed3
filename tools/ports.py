"""What answers on a port of this machine, and which are free."""

import errno
import os
import random
import socket
import struct
from collections.abc import Iterable
from itertools import islice

_CORRELATION_ID = 0x6B61666B
# Metadata, version 1, without a client id, of no topic: any Kafka since 0.10 answers it.
_METADATA_REQUEST = struct.pack(">hhihi", 3, 1, _CORRELATION_ID, -1, 0)


def reachable(bootstrap_servers: str) -> bool:
    """Return whether a Kafka answers at one of these `host:port,host:port`, asking each for 2 s at most.

    It must answer a Metadata request without TLS and without a password; an open port alone does not count.
    """
    return any(nodes_known_to(address) for address in bootstrap_servers.split(","))


def nodes_known_to(address: str) -> set[int]:
    """Ask the Kafka at `host:port` for the ids of the brokers that are alive; none when no Kafka answers within 2 s.

    Over a bare socket: it works inside and outside an event loop, and a Kafka client would retry and log.
    """
    host, _, port = address.strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(_METADATA_REQUEST)) + _METADATA_REQUEST)
            with connection.makefile("rb") as answer:
                (size,) = struct.unpack(">i", answer.read(4))
                metadata = answer.read(min(size, 1 << 20))  # what is no Kafka may announce gigabytes
        return _node_ids(metadata)
    except (OSError, ValueError, OverflowError, struct.error):
        return set()


def _node_ids(metadata: bytes) -> set[int]:
    """Read the list of brokers: node id, host, port and rack, whose length is -1 when there is none."""
    correlation_id, count = struct.unpack_from(">ii", metadata)
    if correlation_id != _CORRELATION_ID:
        return set()
    found, at = set(), 8
    for _ in range(count):
        node_id, host_length = struct.unpack_from(">ih", metadata, at)
        _, rack_length = struct.unpack_from(">ih", metadata, at + 6 + host_length)
        at += 12 + host_length + max(rack_length, 0)
        found.add(node_id)
    return found


def why_taken(port: int) -> str | None:
    """Return why nobody could listen on this port of `localhost`, be it IPv4's or IPv6's, or None."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as probe:
                if os.name == "posix":  # elsewhere this would allow what it should detect
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError as error:  # any other error: there is no IPv6 here
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return os.strerror(error.errno)
    return None


def free_ports(count: int, besides: Iterable[int] = ()) -> list[int]:
    """Choose ports below those that systems give to outgoing connections, or a client could take a dead broker's."""
    shuffled = random.SystemRandom().sample(range(20_000, 32_000), 12_000)
    return list(islice((port for port in shuffled if port not in besides and not why_taken(port)), count))
