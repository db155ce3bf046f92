"""The catalog in gRPC's words."""

from __future__ import annotations

from typing import TypeVar

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from registry.domain.errors import CATALOG, ERROR_DOMAIN, Reason, RefusalError
from runnerd.rpc.status import MAX_STATUS_BYTES, to_status

M = TypeVar("M", bound=Message)


def detail(status: status_pb2.Status, kind: type[M]) -> M | None:
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    return None


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason__has_a_status_with_its_name(reason: Reason) -> None:
    status = to_status(RefusalError(reason, "One sentence."))
    info = detail(status, error_details_pb2.ErrorInfo)
    assert info is not None
    assert (info.reason, info.domain) == (reason.value, ERROR_DOMAIN)
    assert status.code != code_pb2.OK, "what is refused is never OK"
    expected = CATALOG[reason].grpc_code
    assert code_pb2.Code.Name(status.code) == ("INTERNAL" if expected == "OK" else expected)
    retry = detail(status, error_details_pb2.RetryInfo)
    assert (retry is not None) == (CATALOG[reason].retry_after_seconds is not None)


def test_field__becomes_a_violation_where_the_request_is_at_fault() -> None:
    status = to_status(RefusalError(Reason.INVALID_REQUEST, "x must be y.", metadata={"field": "context.x"}))
    bad = detail(status, error_details_pb2.BadRequest)
    assert bad is not None
    assert bad.field_violations[0].field == "context.x"
    assert detail(to_status(RefusalError(Reason.INTERNAL, "x", metadata={"field": "x"})), error_details_pb2.BadRequest) is None


def test_quota__becomes_a_quota_failure() -> None:
    assert detail(to_status(RefusalError(Reason.QUOTA_EXCEEDED, "x")), error_details_pb2.QuotaFailure) is not None


def test_retry_after__of_the_error_wins() -> None:
    retry = detail(to_status(RefusalError(Reason.OVERLOADED, "x", retry_after_seconds=9)), error_details_pb2.RetryInfo)
    assert retry is not None
    assert retry.retry_delay.seconds == 9


def test_size__is_bounded_whatever_is_said() -> None:
    metadata = {f"key{index}" + "k" * 500: "v" * 10_000 for index in range(100)} | {"field": "f" * 10_000}
    status = to_status(RefusalError(Reason.INVALID_REQUEST, "é" * 20_000, metadata=metadata))
    assert status.ByteSize() <= MAX_STATUS_BYTES
    assert detail(status, error_details_pb2.ErrorInfo) is not None
