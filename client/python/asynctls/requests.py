# SPDX-License-Identifier: Apache-2.0
"""From keyword arguments to a GenerateRequest, and from its events to a whole reply."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Iterable, Mapping, Optional, Sequence, Union

from .v1 import generation_pb2, worker_pb2

# Text; token ids; or chat messages, {"role": .., "content": ..} each.
Prompt = Union[str, Sequence[int], Sequence[Mapping[str, str]]]

_SAMPLING = frozenset(generation_pb2.Sampling.DESCRIPTOR.fields_by_name)
_STOPPING = frozenset(generation_pb2.Stopping.DESCRIPTOR.fields_by_name)
_SPARSE = frozenset(generation_pb2.Sparse.DESCRIPTOR.fields_by_name) - {"top_p"}
_RESPONSE = frozenset(generation_pb2.ResponseOptions.DESCRIPTOR.fields_by_name) - {"text"}
_REQUEST = frozenset({"request_id", "cache_salt", "priority", "model"})
_ENUMS = {
    "mode": (worker_pb2.AttentionMode, "ATTENTION_MODE_"),
    "selector": (worker_pb2.Selector, "SELECTOR_"),
}


def chat_messages(
    messages: Iterable[Mapping[str, str]], thinking: Optional[bool] = None
) -> generation_pb2.ChatMessages:
    chat = generation_pb2.ChatMessages(
        messages=[generation_pb2.ChatMessage(role=m["role"], content=m["content"]) for m in messages]
    )
    if thinking is not None:
        chat.enable_thinking = thinking
    return chat


def _set(message: Any, name: str, value: Any) -> None:
    if name in _ENUMS and isinstance(value, str):
        enum, prefix = _ENUMS[name]
        value = enum.Value(prefix + value.upper())
    if isinstance(value, Mapping):
        getattr(message, name).update(value)
    elif isinstance(value, (list, tuple)):
        getattr(message, name).extend(value)
    else:
        setattr(message, name, value)


def build_request(
    prompt: Prompt, *, thinking: Optional[bool] = None, **fields: Any
) -> generation_pb2.GenerateRequest:
    """`fields` are those of the messages Sampling, Stopping, Sparse, ResponseOptions (without
    `text`) and GenerateRequest, by their names in generation.proto; `mode` and `selector` may be
    "dense", "exact", "lagged" and "code", "bound"; the mass cut of Sparse is `sparse_top_p`.
    A field that is None is left out. Raises TypeError for an unknown one."""
    request = generation_pb2.GenerateRequest()
    if isinstance(prompt, str):
        request.text = prompt
    elif len(prompt) > 0 and isinstance(prompt[0], Mapping):
        request.chat.CopyFrom(chat_messages(prompt, thinking))
    else:
        request.token_ids.ids.extend(prompt)
        request.token_ids.SetInParent()
    if thinking is not None and not request.HasField("chat"):
        raise TypeError("thinking goes with chat messages")
    for name, value in fields.items():
        if value is None:
            continue
        if name == "sparse_top_p":
            request.sparse.top_p = value
        elif name in _SAMPLING:
            _set(request.sampling, name, value)
        elif name in _STOPPING:
            _set(request.stopping, name, value)
        elif name in _SPARSE:
            _set(request.sparse, name, value)
        elif name in _RESPONSE:
            _set(request.response, name, value)
        elif name in _REQUEST:
            _set(request, name, value)
        else:
            raise TypeError(f"unknown field {name!r}")
    return request


@dataclass
class Completion:
    """One whole reply (of `n`)."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: str = ""  # stop, length, aborted
    usage: Optional[generation_pb2.Usage] = None

    def take(self, event: generation_pb2.GenerateResponse) -> None:
        """Adds an event of this reply."""
        if event.HasField("delta"):
            self.text += event.delta.text
            self.token_ids.extend(event.delta.token_ids)
            self.log_probs.extend(event.delta.log_probs)
        else:
            name = generation_pb2.FinishReason.Name(event.finished.reason)
            self.finish_reason = name[len("FINISH_REASON_"):].lower()
            self.usage = event.finished.usage


class Collector:
    """Sorts the events of a call into its replies."""

    def __init__(self) -> None:
        self.started: Optional[generation_pb2.Started] = None
        self._completions: dict[int, Completion] = {}

    def take(self, event: generation_pb2.GenerateResponse) -> Optional[generation_pb2.Delta]:
        """The delta in the event, if it is one."""
        kind = event.WhichOneof("event")
        if kind == "started":
            self.started = event.started
        elif kind in ("delta", "finished"):
            index = getattr(event, kind).index
            self._completions.setdefault(index, Completion(index)).take(event)
        return event.delta if kind == "delta" else None

    @property
    def completions(self) -> list[Completion]:
        return [self._completions[index] for index in sorted(self._completions)]
