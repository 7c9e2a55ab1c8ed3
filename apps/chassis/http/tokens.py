"""Bearer tokens (JWT) of an identity provider, made for this service. Needs the extra `oidc`."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

# Both joserfc and PyJWT need only cryptography; joserfc bounds what it parses and lets an RSA key that names no
# algorithm verify RS256 and PS256. Litestar's own tokens know one secret and no set of keys.
from joserfc import jwt
from joserfc.errors import ExpiredTokenError, InvalidClaimError, JoseError, MissingClaimError, SecurityWarning
from joserfc.jwk import GuestProtocol, Key
from joserfc.jws import JWSRegistry
from joserfc.jwt import JWTClaimsRegistry

from apps.chassis.http.callers import Caller, ExpiredToken, InvalidToken, KeysOutOfReach, UnknownKey
from apps.chassis.http.roles import Role
from apps.chassis.http.token_keys import KeySource

ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA", "Ed25519")
"""The accepted signatures: all asymmetric, so that no public key is taken for a shared secret."""
LEEWAY_S = 30
"""Seconds by which the clocks of the issuer and of this machine may differ."""
MAX_SUBJECT = 255
"""Longest subject, in characters (OpenID Connect Core, section 2)."""
REMEMBERED = 1_024
"""Tokens whose signature is remembered: verifying one takes as long as the rest of a short call."""

Claims = Mapping[str, Any]


class Tokens:
    """Verifies tokens, and returns who they are of.

    `roles` are the roles by the values of the claim `roles_claim`; other values give none.
    """

    def __init__(
        self,
        issuer: str,
        audiences: Sequence[str],
        source: KeySource,
        roles_claim: str,
        roles: Mapping[str, frozenset[Role]],
    ) -> None:
        # `EdDSA` has a newer name, and providers use the old one; weak keys are skipped where they are read
        warnings.filterwarnings("ignore", category=SecurityWarning)
        self._source = source
        self._roles_claim = roles_claim
        self._roles = roles
        self._signatures = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        self._claims = JWTClaimsRegistry(
            leeway=LEEWAY_S,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "values": [*audiences]},
            exp={"essential": True},
            sub={"essential": True},
        )
        self._remembered: dict[str, Claims] = {}
        self._remembered_by = source.keys  # a file is read now: at the first call it may be half written

    @property
    def failure(self) -> str | None:
        """Why the keys of the issuer may not be those of now."""
        return self._source.failure

    @property
    def has_keys(self) -> bool:
        """Whether any token can be verified."""
        return bool(self._source.keys)

    def open(self) -> AbstractAsyncContextManager[None]:
        """Keep the keys of the issuer up to date until the end of the block."""
        return self._source.open()

    async def prepare(self, token: str) -> None:
        """Wait for the keys of the issuer when a token is signed with an unknown one."""
        try:
            self._claims_of(token)
        except UnknownKey:
            await self._source.refresh()
        except InvalidToken:
            return

    def verify(self, token: str) -> Caller:
        """Return who a token is of. Raises `InvalidToken` or `KeysOutOfReach`."""
        try:
            claims = self._claims_of(token)
            self._claims.validate(dict(claims))
        except UnknownKey:
            if self.failure:
                raise KeysOutOfReach from None
            raise
        except ExpiredTokenError:
            raise ExpiredToken("it has expired") from None
        except (InvalidClaimError, MissingClaimError) as error:
            raise InvalidToken(f"wrong or missing: {error.claim}") from None
        if len(claims["sub"]) > MAX_SUBJECT or not claims["sub"].isprintable():
            raise InvalidToken("sub is too long, or has characters that cannot be shown")
        return Caller(f"token:{claims['sub']}", self._roles_of(claims))

    def _claims_of(self, token: str) -> Claims:
        """Return the claims of a token that is signed with a known key; they are not checked yet."""
        if (keys := self._source.keys) is not self._remembered_by:
            self._remembered, self._remembered_by = {}, keys
        if (known := self._remembered.get(token)) is not None:
            return known
        try:
            claims = jwt.decode(token, self._key_of, registry=self._signatures).claims
        except (JoseError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
            raise InvalidToken("its form or its signature is wrong") from None
        self._remembered[token] = claims
        if len(self._remembered) > REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return claims

    def _key_of(self, token: GuestProtocol) -> Key:
        kid = token.headers().get("kid")
        if not isinstance(kid, str):
            raise InvalidToken("it names no key (kid)")
        if (key := self._source.keys.get(kid)) is None:
            raise UnknownKey("its key (kid) is unknown")
        return key

    def _roles_of(self, claims: Claims) -> frozenset[Role]:
        given = (self._roles.get(value, frozenset()) for value in _values_at(claims, self._roles_claim))
        return frozenset[Role]().union(*given)


def _values_at(claims: Claims, path: str) -> Iterable[str]:
    """Return the texts of a list, or the words of a text; a path is a name, or names with dots between them."""
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
    if isinstance(found, str):
        return found.split()
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []
