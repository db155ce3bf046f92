from __future__ import annotations

import pytest

from runnerd.dispatch.headers import HeaderError, check_request_header


@pytest.mark.parametrize("name", ["accept", "content-type", "x-request-id", "x-alga-tenant", "x-hub-signature-256", "if-none-match"])
def test_request_header__reaches_the_guest(name: str) -> None:
    check_request_header(name, "value")


@pytest.mark.parametrize(
    "name",
    [
        "authorization",
        "cookie",
        "proxy-authorization",
        "proxy-anything",
        "x-extrunner-subject-token",
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "forwarded",
        "x-forwarded-for",
        "x-alga-role",
    ],
)
def test_request_header__credentials_and_what_is_ours_are_refused(name: str) -> None:
    with pytest.raises(HeaderError, match="leave it out"):
        check_request_header(name, "value")
