"""A refusal of the catalog as google.rpc.Status. Only reads `registry.domain.errors`.

Details are kept under 4 KiB (N30): gRPC sends them as a trailer, and a client whose metadata limit they exceed sees no error at all but a
broken stream. Long explanations belong into the execution record.
"""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2

from registry.domain.errors import ERROR_DOMAIN, Reason, RefusalError

MAX_STATUS_BYTES = 4096
MAX_MESSAGE_CHARACTERS = 512
MAX_METADATA_ENTRIES = 8
MAX_METADATA_CHARACTERS = 200


def to_status(error: RefusalError) -> status_pb2.Status:
    """Say `error` in gRPC's words: code, message, ErrorInfo, and RetryInfo, BadRequest or QuotaFailure where they fit."""
    row = error.row
    code = code_pb2.Code.Value(row.grpc_code)
    # NOTE: what is an outcome in gRPC has no error code; whoever raises it here has made an internal error.
    status = status_pb2.Status(code=code or code_pb2.INTERNAL, message=_cut(error.public_detail, MAX_MESSAGE_CHARACTERS))
    metadata = {_cut(key, 64): _cut(value, MAX_METADATA_CHARACTERS) for key, value in list(error.metadata.items())[:MAX_METADATA_ENTRIES]}
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason.value, domain=ERROR_DOMAIN, metadata=metadata))
    if error.retry_after_seconds is not None:
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=error.retry_after_seconds)))
    field = metadata.get("field")
    if field is not None and row.grpc_code == "INVALID_ARGUMENT":
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=status.message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.reason is Reason.QUOTA_EXCEEDED:
        quota = error_details_pb2.QuotaFailure.Violation(subject=metadata.get("quota", "tenant"), description=status.message)
        status.details.add().Pack(error_details_pb2.QuotaFailure(violations=[quota]))
    # Optional details go first, from the end; ErrorInfo alone is well below the bound.
    while status.ByteSize() > MAX_STATUS_BYTES and len(status.details) > 1:
        del status.details[-1]
    return status


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
