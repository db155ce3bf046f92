"""Who calls: bearer tokens of users, and the roles they hold.

Attacks this stops: a cookie or a query parameter taken for a credential (cross-site requests carry cookies, logs carry queries);
two Authorization headers of which one is checked and the other used; a tenant named by anything but the verified token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from registry.domain.errors import Reason, RefusalError
from registry.domain.ids import TenantId, is_tenant_id
from registry.tokens import ClaimNames, TokenVerifier, UserToken, parse_user

INVOKE = "ext:invoke"
READ = "ext:read"
MANAGE = "ext:manage"
PUBLISH = "ext:publish"
OPERATE = "ext:operate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated user and the token that proves it."""

    user: UserToken
    token: str = field(repr=False)

    @property
    def actor(self) -> str:
        """Who is written into audit records."""
        return self.user.subject

    def require(self, *roles: str) -> None:
        """Go on if the caller has at least one of `roles`.

        Raises:
            RefusalError: PERMISSION_MISSING; it names the roles.
        """
        if not self.user.roles & set(roles):
            raise RefusalError(Reason.PERMISSION_MISSING, f"This needs the role {' or '.join(roles)}.", metadata={"roles": " ".join(roles)})

    def tenant(self, named: str | None, *roles: str) -> TenantId:
        """Return the tenant this request is about: the token's own, or the one an operator names.

        Raises:
            RefusalError: PERMISSION_MISSING without one of `roles` or `OPERATE`; TENANT_FORBIDDEN for another tenant than the
                token's; INVALID_REQUEST where an operator of all tenants names none.
        """
        self.require(*roles, OPERATE)
        operates = OPERATE in self.user.roles
        own = self.user.tenant if is_tenant_id(self.user.tenant) else None
        wanted = named or own
        if wanted is None or not is_tenant_id(wanted):
            raise RefusalError(Reason.INVALID_REQUEST, "Name a tenant with the parameter tenant_id.")
        # SECURITY: only the platform's operators reach beyond the tenant of their token.
        if wanted != own and not operates:
            raise RefusalError(Reason.TENANT_FORBIDDEN, "Your token is for another tenant.")
        return TenantId(wanted)


class Authenticator:
    """Turns the headers of a request into a Caller.

    Args:
        verifier: of users' tokens.
        names: claims in which the identity provider says tenant, subject and roles.
    """

    def __init__(self, verifier: TokenVerifier, names: ClaimNames) -> None:
        self._verifier = verifier
        self._names = names

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Return who calls. Nothing but one Authorization header with the scheme Bearer counts.

        Raises:
            RefusalError: UNAUTHENTICATED.
        """
        values = [value for name, value in headers if name == b"authorization"]
        if len(values) != 1:
            raise RefusalError(Reason.UNAUTHENTICATED, "Send exactly one Authorization header with a bearer token.")
        scheme, _, token = values[0].decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            raise RefusalError(Reason.UNAUTHENTICATED, "Send the token with the scheme Bearer.")
        token = token.strip(" ")
        return Caller(user=parse_user(self._verifier.verify(token), names=self._names), token=token)
