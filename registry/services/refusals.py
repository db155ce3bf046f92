"""Refusals that several services give, each in one wording."""

from __future__ import annotations

from registry.domain.errors import Reason, RefusalError


def no_such_install() -> RefusalError:
    """Return what whoever names an install is told: the same where it is another tenant's, so that nobody learns of it."""
    return RefusalError(Reason.EXTENSION_NOT_INSTALLED, "There is no such install for this tenant; check the id.")
