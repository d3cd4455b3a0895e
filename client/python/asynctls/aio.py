# SPDX-License-Identifier: Apache-2.0
"""The asyncio client: as client.py, with `async for` and `await`. For one event loop."""
from __future__ import annotations

from typing import Any, AsyncIterator, Iterable, Mapping, Optional, Sequence

import grpc
import grpc.aio

from .client import CHANNEL_OPTIONS
from .errors import from_rpc
from .requests import Collector, Completion, Prompt, build_request, chat_messages
from .v1 import generation_pb2, generation_pb2_grpc


class AsyncStream:
    """A call in progress: `async for` gives Deltas. Leaving it (`close`, or an `async with` block)
    cancels what is not finished. After the last Delta `completions` holds the whole replies."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._collector = Collector()

    def __aiter__(self) -> AsyncIterator[generation_pb2.Delta]:
        return self

    async def __anext__(self) -> generation_pb2.Delta:
        while True:
            try:
                event = await self._call.read()
                if event is grpc.aio.EOF:
                    # read() tells the end of a failed call only through its status.
                    if await self._call.code() is not grpc.StatusCode.OK:
                        raise from_rpc(await self._failure())
                    raise StopAsyncIteration
            except grpc.RpcError as error:
                raise from_rpc(error) from None
            delta = self._collector.take(event)
            if delta is not None:
                return delta

    async def _failure(self) -> grpc.aio.AioRpcError:
        call = self._call
        return grpc.aio.AioRpcError(
            await call.code(),
            await call.initial_metadata(),
            await call.trailing_metadata(),
            details=await call.details(),
        )

    def close(self) -> None:
        self._call.cancel()

    async def __aenter__(self) -> "AsyncStream":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    @property
    def started(self) -> Optional[generation_pb2.Started]:
        return self._collector.started

    @property
    def completions(self) -> list[Completion]:
        return self._collector.completions


class AsyncClient:
    """Raises AsyncTlsError for every call that fails. `timeout` is the call's deadline in seconds."""

    def __init__(
        self, target: str, *, credentials: Optional[grpc.ChannelCredentials] = None
    ) -> None:
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, CHANNEL_OPTIONS)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def generate(
        self, prompt: Prompt, *, timeout: Optional[float] = None, **fields: Any
    ) -> AsyncStream:
        """Begins a generation; `fields` as in `build_request`."""
        return AsyncStream(self._stub.Generate(build_request(prompt, **fields), timeout=timeout))

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        timeout: Optional[float] = None,
        **fields: Any,
    ) -> Completion:
        """The whole answer to a conversation. With `n`, the first."""
        async with self.generate(messages, timeout=timeout, **fields) as stream:
            async for _ in stream:
                pass
            return stream.completions[0]

    async def tokenize(
        self, text: str, *, parse_special: bool = True, timeout: Optional[float] = None
    ) -> list[int]:
        request = generation_pb2.TokenizeRequest(text=text, parse_special=parse_special)
        return list((await self._unary(self._stub.Tokenize, request, timeout)).ids)

    async def tokenize_chat(
        self,
        messages: Iterable[Mapping[str, str]],
        *,
        thinking: Optional[bool] = None,
        timeout: Optional[float] = None,
    ) -> tuple[list[int], str]:
        """Ids of a conversation, and the prompt it is rendered to."""
        request = generation_pb2.TokenizeRequest(chat=chat_messages(messages, thinking))
        response = await self._unary(self._stub.Tokenize, request, timeout)
        return list(response.ids), response.text

    async def detokenize(
        self, ids: Iterable[int], *, skip_special_tokens: bool = True, timeout: Optional[float] = None
    ) -> str:
        request = generation_pb2.DetokenizeRequest(ids=ids, skip_special_tokens=skip_special_tokens)
        return (await self._unary(self._stub.Detokenize, request, timeout)).text

    async def model_info(
        self, *, timeout: Optional[float] = None
    ) -> generation_pb2.GetModelInfoResponse:
        return await self._unary(
            self._stub.GetModelInfo, generation_pb2.GetModelInfoRequest(), timeout
        )

    async def load(self, *, timeout: Optional[float] = None) -> generation_pb2.GetLoadResponse:
        return await self._unary(self._stub.GetLoad, generation_pb2.GetLoadRequest(), timeout)

    async def abort(self, *request_ids: str, timeout: Optional[float] = None) -> None:
        """Ends requests by their ids; unknown ones are ignored."""
        request = generation_pb2.AbortRequest(request_ids=request_ids)
        await self._unary(self._stub.Abort, request, timeout)

    @staticmethod
    async def _unary(method: Any, request: Any, timeout: Optional[float]) -> Any:
        try:
            return await method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc(error) from None
