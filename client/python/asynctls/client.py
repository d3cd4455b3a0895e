# SPDX-License-Identifier: Apache-2.0
"""The blocking client. Thread-safe."""
from __future__ import annotations

from typing import Any, Iterable, Iterator, Mapping, Optional, Sequence

import grpc

from .errors import from_rpc
from .requests import Collector, Completion, Prompt, build_request, chat_messages
from .v1 import generation_pb2, generation_pb2_grpc

CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 30000),
    ("grpc.keepalive_timeout_ms", 10000),
    ("grpc.max_receive_message_length", -1),
]


class Stream:
    """A call in progress: iterates over Deltas. Leaving it (`close`, or a `with` block) cancels what
    is not finished. After the last Delta `completions` holds the whole replies."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._collector = Collector()

    def __iter__(self) -> Iterator[generation_pb2.Delta]:
        return self

    def __next__(self) -> generation_pb2.Delta:
        while True:
            try:
                event = next(self._call)
            except grpc.RpcError as error:
                raise from_rpc(error) from None
            delta = self._collector.take(event)
            if delta is not None:
                return delta

    def close(self) -> None:
        self._call.cancel()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def started(self) -> Optional[generation_pb2.Started]:
        return self._collector.started

    @property
    def completions(self) -> list[Completion]:
        return self._collector.completions


class Client:
    """Raises AsyncTlsError for every call that fails. `timeout` is the call's deadline in seconds."""

    def __init__(
        self, target: str, *, credentials: Optional[grpc.ChannelCredentials] = None
    ) -> None:
        if credentials is None:
            self._channel = grpc.insecure_channel(target, CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, credentials, CHANNEL_OPTIONS)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def generate(
        self, prompt: Prompt, *, timeout: Optional[float] = None, **fields: Any
    ) -> Stream:
        """Begins a generation; `fields` as in `build_request`."""
        return Stream(self._stub.Generate(build_request(prompt, **fields), timeout=timeout))

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        timeout: Optional[float] = None,
        **fields: Any,
    ) -> Completion:
        """The whole answer to a conversation. With `n`, the first."""
        with self.generate(messages, timeout=timeout, **fields) as stream:
            for _ in stream:
                pass
            return stream.completions[0]

    def tokenize(self, text: str, *, parse_special: bool = True, timeout: Optional[float] = None) -> list[int]:
        request = generation_pb2.TokenizeRequest(text=text, parse_special=parse_special)
        return list(self._unary(self._stub.Tokenize, request, timeout).ids)

    def tokenize_chat(
        self,
        messages: Iterable[Mapping[str, str]],
        *,
        thinking: Optional[bool] = None,
        timeout: Optional[float] = None,
    ) -> tuple[list[int], str]:
        """Ids of a conversation, and the prompt it is rendered to."""
        request = generation_pb2.TokenizeRequest(chat=chat_messages(messages, thinking))
        response = self._unary(self._stub.Tokenize, request, timeout)
        return list(response.ids), response.text

    def detokenize(
        self, ids: Iterable[int], *, skip_special_tokens: bool = True, timeout: Optional[float] = None
    ) -> str:
        request = generation_pb2.DetokenizeRequest(ids=ids, skip_special_tokens=skip_special_tokens)
        return self._unary(self._stub.Detokenize, request, timeout).text

    def model_info(self, *, timeout: Optional[float] = None) -> generation_pb2.GetModelInfoResponse:
        return self._unary(self._stub.GetModelInfo, generation_pb2.GetModelInfoRequest(), timeout)

    def load(self, *, timeout: Optional[float] = None) -> generation_pb2.GetLoadResponse:
        return self._unary(self._stub.GetLoad, generation_pb2.GetLoadRequest(), timeout)

    def abort(self, *request_ids: str, timeout: Optional[float] = None) -> None:
        """Ends requests by their ids; unknown ones are ignored."""
        self._unary(self._stub.Abort, generation_pb2.AbortRequest(request_ids=request_ids), timeout)

    @staticmethod
    def _unary(method: Any, request: Any, timeout: Optional[float]) -> Any:
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc(error) from None
