"""Bearer tokens (JWT): verifying them against pinned key sets, minting them, and reading their claims.

Attacks this stops: a token without or with another signature; `alg: none`; a public key used as an HMAC secret (algorithm
confusion); a key fetched from where the token says (`jku`, `jwk`, `x5u` are ignored: keys come from a pinned file only); a token
of another issuer or for another audience replayed here; a service token that lives for long; a token so large or so nested that
reading it costs.

    KeySetError             a key file is unusable (registry/key_sets.py)
    RefusalError            UNAUTHENTICATED: the token is not accepted, or its claims are not what they must be

Everything here is synchronous. Verifying costs about 0.12 ms the first time and one SHA-256 while the result is remembered.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeVar

import jwt
import structlog

from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import is_tenant_id
from registry.key_sets import (
    DEVELOPMENT_KEY_PREFIX,
    GeneratedKeySet,
    KeySetError,
    PublicKey,
    file_version,
    generate_key_set,
    load_private_key,
    load_public_keys,
)

__all__ = [
    "ANY_TENANT",
    "DEVELOPMENT_KEY_PREFIX",
    "GATEWAY_AUDIENCE",
    "PLATFORM_ROLES",
    "RUNNER_AUDIENCE",
    "ClaimNames",
    "GeneratedKeySet",
    "KeySetError",
    "ServiceToken",
    "TokenMinter",
    "TokenVerifier",
    "UserToken",
    "generate_key_set",
    "parse_service",
    "parse_user",
]

GATEWAY_AUDIENCE: Final = "extrunner-gateway"
RUNNER_AUDIENCE: Final = "extrunner-runner"
ANY_TENANT: Final = "*"
PLATFORM_ROLES: Final = frozenset({"ext:publish", "ext:operate"})
"""The only roles that a token for every tenant may hold."""
MAX_TOKEN_CHARACTERS: Final = 8 * 1024
MAX_SERVICE_TOKEN_SECONDS: Final = 600
"""A service token that lives longer is refused, however well it is signed (T7)."""

_REMEMBERED_TOKENS = 4096
_REMEMBERED_SECONDS = 60.0
_FILE_CHECK_SECONDS = 1.0
_MAX_LIST = 64
_MAX_WORD_CHARACTERS = 64
T = TypeVar("T")
_WORD = re.compile(r"[a-z0-9]+([:._-][a-z0-9]+)*\Z")

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Remembered:
    """The claims of a token that verified, and what somebody read in them."""

    claims: Mapping[str, object]
    until: float = 0.0
    read_by: object = None
    reading: Any = None


class TokenVerifier:
    """Verifies bearer tokens against a pinned JWKS file.

    Args:
        jwks_file: public keys, a JSON Web Key Set. Read again when it changes, looked at at most once a second; a broken new
            version is reported and the last good one stays in force.
        audience: what `aud` must be or contain.
        issuer: what `iss` must be.
        leeway_seconds: difference of clocks that is forgiven.
        algorithms: the only signature algorithms accepted; each key is used with the one that its type names.
        refuse_development_keys: refuse a key set that holds a key made by `generate_key_set`.
        clock: seconds since the epoch, for what is remembered.

    Raises:
        KeySetError: the file is unusable.
    """

    def __init__(  # noqa: PLR0913 - all but the file are keywords, and each is one fact of the operator's configuration.
        self,
        jwks_file: Path,
        *,
        audience: str,
        issuer: str,
        leeway_seconds: int = 30,
        algorithms: Sequence[str] = ("EdDSA", "ES256", "RS256"),
        refuse_development_keys: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._file = jwks_file
        self._audience = audience
        self._issuer = issuer
        self._leeway = leeway_seconds
        self._algorithms = frozenset(algorithms)
        self._refuse_development_keys = refuse_development_keys
        self._clock = clock
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._looked_at = clock()
        self._file_version = file_version(jwks_file)
        self._keys = self._load()

    def verify(self, token: str) -> Mapping[str, object]:
        """Return the claims of `token`.

        Guarantee: signed by a key of the set with that key's own algorithm; `exp`, `iat`, `aud` and `iss` are present and hold now.

        Raises:
            RefusalError: UNAUTHENTICATED; the sentence names what is wrong and repeats nothing of the token.
        """
        return self._verified(token).claims

    def verify_as(self, token: str, read: Callable[[Mapping[str, object]], T]) -> T:
        """Return what `read` makes of the claims of `token`; asked once for each `read` while the result is remembered.

        Args:
            token: the bearer token.
            read: `parse_service` or another pure function; the same object for the same reading.

        Raises:
            RefusalError: UNAUTHENTICATED, as `verify`, or what `read` refuses.
        """
        found = self._verified(token)
        if found.read_by is read:
            known: T = found.reading
            return known
        reading = read(found.claims)
        found.read_by, found.reading = read, reading
        return reading

    def _verified(self, token: str) -> _Remembered:
        if not token:
            raise RefusalError(Reason.UNAUTHENTICATED, "Send a bearer token.")
        # SECURITY: the size is checked before anything looks into the token.
        if len(token) > MAX_TOKEN_CHARACTERS or not token.isascii():
            raise RefusalError(Reason.UNAUTHENTICATED, f"The bearer token is not a JWT of at most {MAX_TOKEN_CHARACTERS} characters.")
        self._follow_file()
        digest = hashlib.sha256(token.encode()).digest()
        now = self._clock()
        remembered = self._remembered.get(digest)
        if remembered is not None and now < remembered.until:
            return remembered
        verified = _Remembered(MappingProxyType(self._decode(token)))
        self._remember(digest, verified, now)
        return verified

    def _decode(self, token: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise RefusalError(Reason.UNAUTHENTICATED, "The bearer token is not a JWT.") from error
        public = self._key_for(header)
        try:
            return jwt.decode(
                token,
                public.key,
                # SECURITY: the one algorithm of the key, never what the token asks for.
                algorithms=[public.algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway,
                options={"require": ["exp", "iat", "aud", "iss"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise RefusalError(Reason.UNAUTHENTICATED, "The bearer token has expired; get a new one.") from error
        except jwt.ImmatureSignatureError as error:
            raise RefusalError(Reason.UNAUTHENTICATED, "The bearer token is not valid yet; compare the clocks.") from error
        except jwt.MissingRequiredClaimError as error:
            raise RefusalError(Reason.UNAUTHENTICATED, "The bearer token lacks one of exp, iat, aud, iss.") from error
        except jwt.InvalidAudienceError as error:
            raise RefusalError(Reason.UNAUTHENTICATED, "The bearer token is for another audience.") from error
        except jwt.InvalidIssuerError as error:
            raise RefusalError(Reason.UNAUTHENTICATED, "The bearer token is from another issuer.") from error
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise RefusalError(Reason.UNAUTHENTICATED, "The bearer token does not verify.") from error

    def _key_for(self, header: Mapping[str, object]) -> PublicKey:
        kid = header.get("kid")
        if kid is None:
            if len(self._keys) != 1:
                raise RefusalError(Reason.UNAUTHENTICATED, "The bearer token names no key (kid), and there are several.")
            public = next(iter(self._keys.values()))
        else:
            found = self._keys.get(kid) if isinstance(kid, str) and kid else None
            if found is None:
                raise RefusalError(Reason.UNAUTHENTICATED, "The bearer token is signed with an unknown key.")
            public = found
        # SECURITY: "none", HMAC with a public key and every other surprise end here.
        if header.get("alg") != public.algorithm or "crit" in header or header.get("b64", True) is not True:
            raise RefusalError(Reason.UNAUTHENTICATED, "The bearer token's algorithm is not accepted.")
        return public

    def _remember(self, digest: bytes, verified: _Remembered, now: float) -> None:
        expires = verified.claims["exp"]
        if not isinstance(expires, int | float):
            return
        until = min(float(expires), now + _REMEMBERED_SECONDS)
        if until <= now:
            return
        verified.until = until
        self._remembered[digest] = verified
        self._remembered.move_to_end(digest)
        while len(self._remembered) > _REMEMBERED_TOKENS:
            self._remembered.popitem(last=False)

    def _follow_file(self) -> None:
        now = self._clock()
        if 0 <= now - self._looked_at < _FILE_CHECK_SECONDS:
            return
        self._looked_at = now
        try:
            version = file_version(self._file)
            if version == self._file_version:
                return
            self._keys = self._load()
        except KeySetError as error:
            # A file caught half-written is no reason to turn everybody away; it is looked at again in a second.
            _log.warning("key_set_not_reloaded", error=str(error))
            return
        self._file_version = version
        # SECURITY: what a removed key signed must not live on.
        self._remembered.clear()

    def _load(self) -> Mapping[str, PublicKey]:
        return load_public_keys(self._file, algorithms=self._algorithms, refuse_development_keys=self._refuse_development_keys)


class TokenMinter:
    """Mints EdDSA tokens with a private JWK.

    Args:
        private_jwk_file: an Ed25519 private JWK with `kid`, not accessible to everybody.
        issuer: `iss` of what is minted.
        audience: `aud` of what is minted.
        refuse_development_keys: refuse a key made by `generate_key_set`.

    Raises:
        KeySetError: the file is unusable.
    """

    def __init__(self, private_jwk_file: Path, *, issuer: str, audience: str, refuse_development_keys: bool = False) -> None:
        self._private = load_private_key(private_jwk_file, refuse_development_keys=refuse_development_keys)
        self._issuer = issuer
        self._audience = audience

    def mint(self, subject: str, *, ttl_seconds: int, **claims: object) -> str:
        """Mint a token for `subject` that lives `ttl_seconds` from now, with further `claims`.

        Raises:
            ValueError: a claim would override one that the minter sets, or the lifetime is not positive.
        """
        if ttl_seconds <= 0 or claims.keys() & {"iss", "aud", "sub", "iat", "exp"}:
            message = "ttl_seconds must be positive; iss, aud, sub, iat and exp are set by the minter"
            raise ValueError(message)
        now = int(time.time())
        payload = {**claims, "iss": self._issuer, "aud": self._audience, "sub": subject, "iat": now, "exp": now + ttl_seconds}
        return jwt.encode(payload, self._private.key, algorithm="EdDSA", headers={"kid": self._private.kid})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimNames:
    """Names of the claims in which an identity provider says what we need."""

    tenant: str = "tenant"
    subject: str = "sub"
    roles: str = "roles"


_DEFAULT_NAMES: Final = ClaimNames()


@dataclass(frozen=True, slots=True, kw_only=True)
class UserToken:
    """What a user's token says."""

    tenant: str
    """The user's tenant; `ANY_TENANT` only together with nothing but platform roles."""
    subject: str
    roles: frozenset[str]
    email: str | None = None
    name: str | None = None
    type: str | None = None
    client_name: str | None = None
    client_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceToken:
    """What a service's token says."""

    subject: str
    tenants: frozenset[str]
    scopes: frozenset[str]

    def covers(self, tenant_id: str) -> bool:
        """Tell whether the service may speak for `tenant_id`."""
        return ANY_TENANT in self.tenants or tenant_id in self.tenants


def parse_user(claims: Mapping[str, object], *, names: ClaimNames = _DEFAULT_NAMES) -> UserToken:
    """Read the claims of a verified user token.

    Raises:
        RefusalError: UNAUTHENTICATED; a claim is missing or not of its form.
    """
    tenant = claims.get(names.tenant)
    roles = _words(claims.get(names.roles, []), names.roles)
    if not isinstance(tenant, str) or not (is_tenant_id(tenant) or tenant == ANY_TENANT):
        _refuse_claim(names.tenant)
    # SECURITY: nobody calls an extension or manages an install "for every tenant".
    if tenant == ANY_TENANT and not roles <= PLATFORM_ROLES:
        _refuse_claim(names.roles)
    return UserToken(
        tenant=tenant,
        subject=_required_text(claims, names.subject),
        roles=roles,
        email=_text(claims, "email"),
        name=_text(claims, "name"),
        type=_text(claims, "type"),
        client_name=_text(claims, "client_name"),
        client_id=_text(claims, "client_id"),
    )


def parse_service(claims: Mapping[str, object]) -> ServiceToken:
    """Read the claims of a verified service token.

    Raises:
        RefusalError: UNAUTHENTICATED; a claim is missing or not of its form, or the token lives longer than
            `MAX_SERVICE_TOKEN_SECONDS`.
    """
    issued, expires = claims.get("iat"), claims.get("exp")
    if not isinstance(issued, int | float) or not isinstance(expires, int | float) or expires - issued > MAX_SERVICE_TOKEN_SECONDS:
        raise RefusalError(Reason.UNAUTHENTICATED, f"A service token lives at most {MAX_SERVICE_TOKEN_SECONDS} seconds.")
    tenants = claims.get("tenants")
    if not isinstance(tenants, list) or not 1 <= len(tenants) <= _MAX_LIST:
        _refuse_claim("tenants")
    for tenant in tenants:
        if not isinstance(tenant, str) or not (is_tenant_id(tenant) or tenant == ANY_TENANT):
            _refuse_claim("tenants")
    scope = claims.get("scope")
    if not isinstance(scope, str):
        _refuse_claim("scope")
    return ServiceToken(
        subject=_required_text(claims, "sub"),
        tenants=frozenset(tenants),
        scopes=_words(scope.split(" ") if scope else [], "scope"),
    )


def _words(value: object, claim: str) -> frozenset[str]:
    if not isinstance(value, list) or len(value) > _MAX_LIST:
        _refuse_claim(claim)
    for word in value:
        if not isinstance(word, str) or len(word) > _MAX_WORD_CHARACTERS or _WORD.match(word) is None:
            _refuse_claim(claim)
    return frozenset(value)


def _required_text(claims: Mapping[str, object], claim: str) -> str:
    return _text(claims, claim) or _refuse_claim(claim)


def _text(claims: Mapping[str, object], claim: str, *, max_characters: int = 256) -> str | None:
    value = claims.get(claim)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > max_characters or not value.isprintable():
        _refuse_claim(claim)
    return value


def _refuse_claim(claim: str) -> NoReturn:
    raise RefusalError(Reason.UNAUTHENTICATED, f"The bearer token has no valid claim {claim!r}.")
