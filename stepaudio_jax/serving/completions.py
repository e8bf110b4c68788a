"""POST /v1/completions: prompts as text or token ids, continued as they are."""

from __future__ import annotations

import dataclasses
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request as HttpRequest

from stepaudio_jax.inference import Finished, Request, SamplingParams, TextDelta
from stepaudio_jax.inference.types import SplitEvent
from stepaudio_jax.serving.errors import ApiError
from stepaudio_jax.serving.exchange import Reply, read_json
from stepaudio_jax.serving.protocol import CompletionRequest
from stepaudio_jax.serving.replies import Choice, Piece, usage
from stepaudio_jax.serving.sampling import to_sampling
from stepaudio_jax.serving.scores import completion_logprobs
from stepaudio_jax.serving.service import Service


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request that has been read; each prompt has its text where it is to be echoed."""

    body: CompletionRequest
    prompts: list[tuple[tuple[int, ...], str]]
    sampling: list[SamplingParams]
    owner: str


async def read(service: Service, http: HttpRequest) -> Asked:
    data = await read_json(http)
    body, prompts = await service.in_worker(_parse, service, data)
    sampling = to_sampling(body, service.settings.sampling, service.settings.max_choices)
    most = service.settings.max_choices
    if len(prompts) * len(sampling) > most:
        message = f"prompt: expected at most {most} replies in all, found {len(prompts)} prompts, {len(sampling)} each"
        raise ApiError(message, param="prompt", code="invalid_value")
    return Asked(body, prompts, sampling, service.owner(http, body.user))


def _parse(service: Service, data: bytes) -> tuple[CompletionRequest, list[tuple[tuple[int, ...], str]]]:
    body = CompletionRequest.model_validate_json(data)
    service.check_model(body.model)
    return body, [_prompt(service, body, prompt) for prompt in _split(body.prompt)]


def _split(prompt: str | list[Any]) -> Sequence[str | list[int]]:
    """The prompts: one, or a list of them."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise _empty()
    return prompt


def _prompt(service: Service, body: CompletionRequest, prompt: str | list[int]) -> tuple[tuple[int, ...], str]:
    if isinstance(prompt, str):
        service.check_text(len(prompt), "prompt")
        ids, text = service.tokenizer.encode(prompt, allow_special=True), prompt
    else:
        ids, text = prompt, ""
        if wrong := [token for token in ids if not 0 <= token < service.tokenizer.vocab_size]:
            expected = f"ids of 0 to {service.tokenizer.vocab_size - 1}"
            raise ApiError(f"prompt: expected {expected}, found {wrong[0]}", param="prompt", code="invalid_value")
        if body.echo:
            text = service.tokenizer.decode(ids, skip_special=False)
    if not ids:
        raise _empty()
    return tuple(ids), text if body.echo else ""


def _empty() -> ApiError:
    return ApiError("prompt: expected at least one token, found none", param="prompt", code="invalid_value")


async def respond(service: Service, asked: Asked, reply: Reply):
    body = asked.body
    head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.settings.model_names[0]}
    asks = [
        (f"{head['id']}-{i}", ids, text, sampling)
        for i, ((ids, text), sampling) in enumerate(itertools.product(asked.prompts, asked.sampling))
    ]
    writers = {
        request_id: _Writer(service, body, Choice(i, sampling, "inline"), echo)
        for i, (request_id, _, echo, sampling) in enumerate(asks)
    }
    requests = [
        Request(
            None,
            sampling,
            token_ids=ids,
            split_think=False,
            skip_special=body.skip_special_tokens is not False,
            priority=body.priority or 0,
            owner=asked.owner,
            id=request_id,
        )
        for request_id, ids, _, sampling in asks
    ]
    head |= {"object": "text_completion"}
    async with service.run(requests) as events:
        if body.stream:
            await reply.events(_chunks(body, head, writers, events, len(asked.prompts)))
            return
        pieces: dict[str, list[Piece]] = {request_id: [] for request_id in writers}
        async for event in events:
            if isinstance(event, TextDelta | Finished):
                pieces[event.request_id] += writers[event.request_id].choice.feed(event)
        made = [writers[request_id].whole(found) for request_id, found in pieces.items()]
        sizes = usage([writer.choice for writer in writers.values()], len(asked.prompts))
        await reply.json(head | {"choices": made, "usage": sizes})


async def _chunks(
    body: CompletionRequest,
    head: dict[str, Any],
    writers: dict[str, _Writer],
    events: AsyncIterator[SplitEvent],
    prompts: int,
) -> AsyncIterator[dict[str, Any] | str]:
    none = {"usage": None} if body.include_usage else {}
    for writer in writers.values():
        if writer.echo:
            yield head | {"choices": [writer.made(writer.echo, Piece({}))]} | none
    async for event in events:
        if isinstance(event, TextDelta | Finished):
            for piece in writers[event.request_id].choice.feed(event):
                yield head | {"choices": [writers[event.request_id].written(piece)]} | none
    if body.include_usage:
        yield head | {"choices": [], "usage": usage([writer.choice for writer in writers.values()], prompts)}


class _Writer:
    """A choice's objects, and how long its text has become."""

    def __init__(self, service: Service, body: CompletionRequest, choice: Choice, echo: str):
        self.choice, self.echo = choice, echo
        self._service, self._body = service, body
        self._offset = len(echo)

    def written(self, piece: Piece) -> dict[str, Any]:
        text = piece.delta.get("content", "")
        made = self.made(text, piece)
        self._offset += len(text)
        return made

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        text = "".join(piece.delta.get("content", "") for piece in pieces)
        scores = tuple(score for piece in pieces for score in piece.scores)
        return self.made(self.echo + text, Piece({}, scores, pieces[-1].finish_reason, pieces[-1].stop_reason))

    def made(self, text: str, piece: Piece) -> dict[str, Any]:
        wanted = self._body.logprobs is not None and (piece.scores or piece.finish_reason)
        scored = completion_logprobs(piece.scores, self._service.names, self._offset) if wanted else None
        made = {
            "index": self.choice.index,
            "text": text,
            "logprobs": scored,
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        if self._body.return_token_ids:
            made["token_ids"] = [score.token_id for score in piece.scores]
        return made
