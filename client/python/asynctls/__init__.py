# SPDX-License-Identifier: Apache-2.0
"""Client of the AsyncTLS inference server: `Client` blocks, `AsyncClient` is for asyncio."""
from .aio import AsyncClient, AsyncStream
from .client import Client, Stream
from .errors import AsyncTlsError, FieldViolation
from .requests import Completion, Prompt, build_request

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "AsyncTlsError",
    "Client",
    "Completion",
    "FieldViolation",
    "Prompt",
    "Stream",
    "build_request",
]
