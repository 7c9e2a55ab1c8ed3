"""Decides which hosts and web pages may call a service: no page of another origin may control or read it.

A browser sends any page's calls to services of this machine. It names the page's origin in `Origin` and
`Sec-Fetch-Site`, which no page can change. Callers other than browsers send neither. With DNS rebinding, a foreign
page has the same origin for the browser, but its name stands in `Host`. A page cannot read what is behind a link of
its own, but it can measure how long that takes: its links lead to routes alone that declare it (`LINKABLE`).
Litestar's `allowed_hosts` answers no problem document, knows no IPv6 address and does not check origins.
"""

import re
from collections.abc import Callable, Collection
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from litestar.plugins.problem_details import ProblemDetailsException
from litestar.types import Scope

from apps.chassis.http.problem_kinds import FOREIGN_ORIGIN, UNKNOWN_HOST
from apps.chassis.http.problems import problem
from apps.chassis.http.request_headers import headers_of
from apps.chassis.settings import ANY_HOST, Settings, is_address

HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\s:\[\],/@]+?)\.?(:[0-9]*)?")
"""A `Host` in lower case: a name or an address, and optionally a port."""
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
READING = frozenset({"GET", "HEAD"})
FOREIGN_CALL = "the call comes from a web page of another origin; CORS_ORIGINS names those that may call"
FOREIGN_LINK = "a link on a web page of another origin may lead to pages alone; to follow it here, enter its address"
MAX_QUOTED_CHARACTERS = 80
LINKABLE = "linkable"
"""The option of a route to which pages of other origins may link: `@get(..., linkable=True)`.

What it answers, and how long that takes, must not depend on records.
"""
MAX_HOST_CHARACTERS = 260
"""Longest `Host`: a name of 253 characters with a dot behind it, and a port."""
HOSTS_REMEMBERED = 64
"""Size of the cache of checked `Host` values: callers use few, and parsing an address is the slowest step."""


class OriginPolicy:
    """Refuses calls under a host name that is not allowed, and calls that pages of other origins make.

    `route_of` finds the route of a call, whose option `LINKABLE` lets links lead to it.
    """

    def __init__(self, settings: Settings, route_of: Callable[[Scope], Any] = lambda _: None) -> None:
        self._route_of = route_of
        self._names = frozenset(name for name in settings.host_names if not name.startswith("*"))
        self._suffixes = tuple(name[1:] for name in settings.host_names if name.startswith("*."))
        self._any_host = not settings.host_names or ANY_HOST in settings.host_names
        self._loopback_alone = all(map(_is_loopback, settings.host_names))
        self._origins = frozenset(settings.allowed_origins)
        self._answers_to = lru_cache(HOSTS_REMEMBERED)(self._is_allowed_host)

    def refusal(self, scope: Scope) -> ProblemDetailsException | None:
        """Return the problem to answer instead of the call; None for an allowed call."""
        given = headers_of(scope)  # a repeated header is joined, and then matches nothing
        host = given.get(b"host", b"").decode("latin-1").lower()
        if not self._any_host and b"host" in given and (len(host) > MAX_HOST_CHARACTERS or not self._answers_to(host)):
            quoted = host[:MAX_QUOTED_CHARACTERS]
            detail = f"the host {quoted!r} is not allowed; if it is this service, add it to ALLOWED_HOSTS"
            return problem(UNKNOWN_HOST, detail)
        from_page = b"origin" in given or b"sec-fetch-site" in given or b"sec-purpose" in given
        if from_page and self._is_foreign(scope, host, given):
            return problem(FOREIGN_ORIGIN, FOREIGN_LINK if _is_link(scope, given) else FOREIGN_CALL)
        return None

    def _is_allowed_host(self, host: str) -> bool:
        """Return whether a `Host` is allowed: by its name, or because no web page can have it.

        No page can have an address, by which probes call: with loopback names only, loopback addresses are allowed,
        with other names all. A page can have a name without a dot: networks give such names to their machines. No
        header tells its calls from those of a proxy, as browsers send neither `Origin` nor `Sec-Fetch-Site` with a
        page's own GET over plain HTTP.
        """
        found = HOST.fullmatch(host)
        if found is None:
            return False
        name = found["name"]
        if name in self._names or name.endswith(self._suffixes) or _is_loopback(name):
            return True
        return not self._loopback_alone and is_address(address := name.strip("[]")) and not _is_hidden_loopback(address)

    def _is_foreign(self, scope: Scope, host: str, given: dict[bytes, bytes]) -> bool:
        origin, site = given.get(b"origin", b"").decode("latin-1").lower(), given.get(b"sec-fetch-site", b"")
        if site == b"same-origin" or origin in self._origins:  # `same-origin` stays true where a proxy changed `Host`
            return False
        if scope.get("method") in READING:
            # prefetches say `none`, as entered addresses do; WebSockets say their origin alone
            is_entered = site in {b"", b"none"} and b"sec-purpose" not in given
            is_own = not origin or _is_own(scope, host, given, origin)
            return not (is_entered and is_own) and not (_is_link(scope, given) and self._is_linkable(scope))
        if site not in {b"", b"none", b"same-site"}:
            return True
        return not _is_own(scope, host, given, origin) if origin else site == b"same-site"

    def _is_linkable(self, scope: Scope) -> bool:
        route = self._route_of(scope)
        return route is not None and bool(route.opt.get(LINKABLE))


def _is_link(scope: Scope, given: dict[bytes, bytes]) -> bool:
    return scope.get("method") in READING and given.get(b"sec-fetch-mode") == b"navigate"


def _is_own(scope: Scope, host: str, given: dict[bytes, bytes], origin: str) -> bool:
    """Return whether an origin is that of the service, also behind a proxy."""
    forwarded = given.get(b"x-forwarded-host", b"").decode("latin-1").lower()  # pages need a preflight to send it
    schemes = ("https",) if scope.get("scheme") == "https" else ("http", "https")  # a proxy may have ended TLS
    return any(_is_origin_of(origin, name.strip(), schemes) for name in (host, *forwarded.split(",")))


def _is_origin_of(origin: str, host: str, schemes: Collection[str]) -> bool:
    scheme, _, name = origin.partition("://")
    return bool(host) and scheme in schemes and name == host.removesuffix(DEFAULT_PORTS[scheme])


def _is_loopback(host: str) -> bool:
    """Return whether a host is always this machine (RFC 6761): a loopback address, or a name for one."""
    address = host.strip("[]")
    if not is_address(address):
        return f".{host}".endswith(".localhost")
    return ip_address(address).is_loopback and not _is_hidden_loopback(address)


def _is_hidden_loopback(address: str) -> bool:
    """Return whether an address leads to this machine, and browsers do not know: they do not say whose page calls it.

    Those are 0.0.0.0, ::, and IPv4 in IPv6.
    """
    found = ip_address(address)
    return found.is_unspecified or getattr(found, "ipv4_mapped", None) is not None
