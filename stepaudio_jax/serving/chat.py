"""POST /v1/chat/completions."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request as HttpRequest

from stepaudio_jax.inference import Completion, Finished, LongAudio, Request, SamplingParams, TextDelta
from stepaudio_jax.inference.types import SplitEvent
from stepaudio_jax.serving.conversations import to_conversation
from stepaudio_jax.serving.exchange import Reply, read_json
from stepaudio_jax.serving.hearing import Hearing
from stepaudio_jax.serving.protocol import ChatRequest
from stepaudio_jax.serving.replies import Choice, Piece, join, usage
from stepaudio_jax.serving.sampling import to_long_audio, to_sampling
from stepaudio_jax.serving.scores import chat_logprobs
from stepaudio_jax.serving.service import Service, comment
from stepaudio_jax.serving.settings import Reasoning
from stepaudio_jax.text import Conversation


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request that has been read."""

    body: ChatRequest
    conversation: Conversation
    sampling: list[SamplingParams]
    heard: float
    warnings: list[str]
    owner: str
    long_audio: LongAudio | None


async def read(service: Service, http: HttpRequest) -> Asked:
    data = await read_json(http)
    body, conversation, hearing, long_audio = await service.in_worker(_parse, service, data)
    sampling = to_sampling(body, service.settings.sampling, service.settings.max_choices)
    owner = service.owner(http, body.user)
    return Asked(body, conversation, sampling, hearing.seconds, hearing.warnings, owner, long_audio)


def _parse(service: Service, data: bytes) -> tuple[ChatRequest, Conversation, Hearing, LongAudio | None]:
    body = ChatRequest.model_validate_json(data)
    service.check_model(body.model)
    long_audio = to_long_audio(body.long_audio, service.settings.long_audio)
    hearing = service.hearing(split=long_audio is not None)
    conversation = to_conversation(body, hearing)
    size = sum(len(turn.text) + len(turn.think or "") for turn in conversation.turns)
    service.check_text(size + len(conversation.tools or ""), "messages")
    return body, conversation, hearing, long_audio


async def respond(service: Service, asked: Asked, reply: Reply):
    body = asked.body
    mode = reasoning(body, service.settings.reasoning)
    warned = {"warnings": asked.warnings} if asked.warnings else {}
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.settings.model_names[0]}
    choices = {
        f"{head['id']}-{i}": Choice(i, sampling, mode, tools=bool(body.tools) and body.tool_choice != "none")
        for i, sampling in enumerate(asked.sampling)
    }
    requests = [
        Request(
            asked.conversation,
            sampling,
            thinking=body.thinking,
            keep_think=bool(body.keep_think),
            split_think=mode != "inline",
            skip_special=body.skip_special_tokens is not False,
            priority=body.priority or 0,
            owner=asked.owner,
            long_audio=asked.long_audio,
            id=request_id,
        )
        for request_id, sampling in zip(choices, asked.sampling, strict=True)
    ]
    async with service.run(requests, asked.heard) as events:
        if body.stream:
            await reply.events(_chunks(service, body, head, warned, choices, events))
        else:
            await reply.json(await _whole(service, body, head, choices, events) | warned)


def reasoning(body: ChatRequest, default: Reasoning) -> Reasoning:
    """Where the thinking goes."""
    if body.include_reasoning is False:
        return "none"
    if body.separate_reasoning is not None:
        return "apart" if body.separate_reasoning else "inline"
    return default


async def _chunks(
    service: Service,
    body: ChatRequest,
    head: dict[str, Any],
    warned: dict[str, Any],
    choices: dict[str, Choice],
    events: AsyncIterator[SplitEvent],
) -> AsyncIterator[dict[str, Any] | str]:
    head = head | {"object": "chat.completion.chunk"}
    none = {"usage": None} if body.include_usage else {}
    for choice in choices.values():
        first = _choice(service, body, choice, Piece({"role": "assistant", "content": ""}))
        yield head | {"choices": [first]} | none | warned
        warned = {}  # once is enough
    async for event in events:
        if not isinstance(event, TextDelta | Finished):
            if (text := comment(event)) is not None:
                yield text
            continue
        choice = choices[event.request_id]
        for piece in choice.feed(event):
            yield head | {"choices": [_choice(service, body, choice, piece)]} | none
    if body.include_usage:
        yield head | {"choices": [], "usage": usage(list(choices.values()))}


def _choice(service: Service, body: ChatRequest, choice: Choice, piece: Piece) -> dict[str, Any]:
    """A choice of a chunk."""
    scored = chat_logprobs(piece.scores, service.names) if body.logprobs and piece.scores else None
    made = {"index": choice.index, "delta": piece.delta, "logprobs": scored, "finish_reason": piece.finish_reason}
    if piece.finish_reason is not None:
        made["stop_reason"] = piece.stop_reason
        made |= _windows(choice.completion)
    if body.return_token_ids:
        made["token_ids"] = [score.token_id for score in piece.scores]
    return made


async def _whole(
    service: Service,
    body: ChatRequest,
    head: dict[str, Any],
    choices: dict[str, Choice],
    events: AsyncIterator[SplitEvent],
) -> dict[str, Any]:
    pieces: dict[str, list[Piece]] = {request_id: [] for request_id in choices}
    async for event in events:
        if isinstance(event, TextDelta | Finished):
            pieces[event.request_id] += choices[event.request_id].feed(event)
    made = [_message(service, body, choice, pieces[request_id]) for request_id, choice in choices.items()]
    return head | {"object": "chat.completion", "choices": made, "usage": usage(list(choices.values()))}


def _message(service: Service, body: ChatRequest, choice: Choice, pieces: Sequence[Piece]) -> dict[str, Any]:
    """A choice of a whole answer."""
    scores = [score for piece in pieces for score in piece.scores]
    made = {
        "index": choice.index,
        "message": join(pieces),
        "logprobs": chat_logprobs(scores, service.names) if body.logprobs else None,
        "finish_reason": pieces[-1].finish_reason,
        "stop_reason": pieces[-1].stop_reason,
        **_windows(choice.completion),
    }
    if body.return_token_ids:
        made["token_ids"] = [score.token_id for score in scores]
    return made


def _windows(completion: Completion | None) -> dict[str, Any]:
    """Of sound that was split, what was answered about each window; times in seconds."""
    windows = completion.windows if completion else ()
    shown = [{"start": each.start, "stop": each.stop, "content": each.completion.answer} for each in windows]
    return {"windows": shown} if shown else {}
