# SPDX-License-Identifier: Apache-2.0
"""What a failed call raises, with the google.rpc details a server may send beside the status."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class FieldViolation:
    field: str
    description: str


@dataclass
class AsyncTlsError(Exception):
    """A call that failed. `code` says how; the lists are empty where the server sent no details."""

    code: grpc.StatusCode
    message: str
    violations: list[FieldViolation] = field(default_factory=list)  # google.rpc.BadRequest
    reason: str = ""  # google.rpc.ErrorInfo
    metadata: dict[str, str] = field(default_factory=dict)  # google.rpc.ErrorInfo
    retry_after: Optional[float] = None  # google.rpc.RetryInfo, seconds

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


def _messages() -> dict[str, Any]:
    """The classes of the google.rpc messages read here, in a pool of their own: another package may
    bring the full ones (googleapis-common-protos)."""
    proto = descriptor_pb2.FileDescriptorProto(name="asynctls_details.proto", package="d", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto

    def message(name: str, *fields: tuple) -> None:
        added = proto.message_type.add(name=name)
        for number, (label, kind, field_name, type_name) in enumerate(fields, start=1):
            if field_name is not None:
                added.field.add(name=field_name, number=number, label=label, type=kind, type_name=type_name)

    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    text, number, sub = kinds.TYPE_STRING, kinds.TYPE_INT64, kinds.TYPE_MESSAGE
    message("Any", (one, text, "type_url", None), (one, kinds.TYPE_BYTES, "value", None))
    message("Status", (one, kinds.TYPE_INT32, "code", None), (one, text, "message", None), (many, sub, "details", ".d.Any"))
    message("Violation", (one, text, "field", None), (one, text, "description", None))
    message("BadRequest", (many, sub, "field_violations", ".d.Violation"))
    message("Entry", (one, text, "key", None), (one, text, "value", None))  # a map on the wire
    message("ErrorInfo", (one, text, "reason", None), (one, text, "domain", None), (many, sub, "metadata", ".d.Entry"))
    message("Duration", (one, number, "seconds", None), (one, kinds.TYPE_INT32, "nanos", None))
    message("RetryInfo", (one, sub, "retry_delay", ".d.Duration"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    names = ["Status", "BadRequest", "ErrorInfo", "RetryInfo"]
    get = getattr(message_factory, "GetMessageClass", None) or message_factory.MessageFactory(pool).GetPrototype
    return {name: get(pool.FindMessageTypeByName(f"d.{name}")) for name in names}


_MESSAGES = _messages()


def _add_details(error: AsyncTlsError, details: bytes) -> None:
    for any_message in _MESSAGES["Status"].FromString(details).details:
        name = any_message.type_url.rpartition("google.rpc.")[2]
        if name == "BadRequest":
            for v in _MESSAGES[name].FromString(any_message.value).field_violations:
                error.violations.append(FieldViolation(v.field, v.description))
        elif name == "ErrorInfo":
            info = _MESSAGES[name].FromString(any_message.value)
            error.reason = info.reason
            error.metadata = {entry.key: entry.value for entry in info.metadata}
        elif name == "RetryInfo":
            delay = _MESSAGES[name].FromString(any_message.value).retry_delay
            error.retry_after = delay.seconds + delay.nanos * 1e-9


def from_rpc(rpc_error: Any) -> AsyncTlsError:
    """The exception for a grpc.RpcError, sync or asyncio."""
    error = AsyncTlsError(rpc_error.code(), rpc_error.details() or "")
    for key, value in rpc_error.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            _add_details(error, value)
    return error
