"""The catalog is total over its reasons and over the public proto enum, and says what DESIGN's table says."""

from __future__ import annotations

import grpc
import pytest

from extrunner.errors.v1 import error_reason_pb2
from registry.domain.errors import CATALOG, Reason, RefusalError

_PREFIX = "ERROR_REASON_"


def test_catalog__has_a_row_for_every_reason_and_no_other() -> None:
    assert set(CATALOG) == set(Reason)


def test_proto_enum__names_the_same_reasons() -> None:
    names = {name.removeprefix(_PREFIX) for name in error_reason_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118
    assert names == {reason.value for reason in Reason}


def test_reasons__are_spelled_as_error_info_demands() -> None:
    for reason in Reason:
        assert reason.name == reason.value
        assert len(reason.value) <= 63


@pytest.mark.parametrize("reason", list(Reason))
def test_rows__name_a_grpc_code_and_an_http_error(reason: Reason) -> None:
    row = CATALOG[reason]
    assert hasattr(grpc.StatusCode, row.grpc_code)
    assert 400 <= row.http_status <= 599
    assert row.title


def test_rows__what_may_be_retried_says_when() -> None:
    retryable = {reason for reason, row in CATALOG.items() if row.retry_after_seconds is not None}
    assert {reason for reason, row in CATALOG.items() if row.grpc_code in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}} <= retryable


def test_worker_crashed__does_not_invite_automatic_retries() -> None:
    assert CATALOG[Reason.WORKER_CRASHED].grpc_code == "INTERNAL"
    assert CATALOG[Reason.WORKER_CRASHED].retry_after_seconds is None


def test_refusal__carries_the_row_and_what_callers_may_read() -> None:
    error = RefusalError(Reason.RATE_LIMITED, "Slow down.", metadata={"limit": "10"}, retry_after_seconds=7)
    assert error.row is CATALOG[Reason.RATE_LIMITED]
    assert (error.public_detail, error.metadata, error.retry_after_seconds) == ("Slow down.", {"limit": "10"}, 7)
    assert RefusalError(Reason.RATE_LIMITED, "Slow down.").retry_after_seconds == 1
