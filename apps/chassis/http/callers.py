"""Who makes a call, as an API key or a bearer token says, and why a token is refused."""

from dataclasses import dataclass
from datetime import UTC, datetime

from apps.chassis.http.roles import Role


@dataclass(frozen=True)
class Caller:
    """The name of a caller, which may be logged; with no `given_roles` it has all, and with no `expires` no end."""

    name: str
    given_roles: frozenset[Role] | None = None
    expires: datetime | None = None

    @property
    def roles(self) -> list[Role]:
        """The roles, in the order of `Role`."""
        return [role for role in Role if self.may(role)]

    @property
    def has_expired(self) -> bool:
        """Whether what named the caller has expired."""
        return self.expires is not None and self.expires <= datetime.now(UTC)

    def may(self, role: Role) -> bool:
        """Return whether the caller has a role."""
        return self.given_roles is None or role in self.given_roles


class InvalidToken(Exception):
    """A bearer token is not accepted; the message says why and quotes nothing of it."""


class ExpiredToken(InvalidToken):
    """A bearer token was valid until it expired."""


class UnknownKey(InvalidToken):
    """A bearer token is signed with a key that is not known; fetching the keys again may change that."""


class KeysOutOfReach(Exception):
    """Nobody can say whether a bearer token is valid: the keys of its issuer cannot be fetched."""
