"""POST /v1/audio/transcriptions: the model is asked to write down what it hears, without thinking first."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.responses import PlainTextResponse
from starlette.datastructures import FormData, UploadFile

from stepaudio_jax.inference import Finished, LongAudio, Request, TextDelta
from stepaudio_jax.inference.types import SplitEvent
from stepaudio_jax.serving.errors import ApiError, shown
from stepaudio_jax.serving.exchange import Reply, check_content_type
from stepaudio_jax.serving.protocol import Generation
from stepaudio_jax.serving.replies import Choice, Piece, join
from stepaudio_jax.serving.sampling import to_sampling
from stepaudio_jax.serving.service import Service, comment
from stepaudio_jax.text import Audio, Conversation, human

FORMATS = ("json", "text", "verbose_json")
NUMBERS = {"temperature": float, "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float,
           "seed": int, "max_tokens": int, "priority": int}  # fmt: skip
"""Fields of the form that say how the text is written, as in the other requests."""

MAX_FIELDS, MAX_FIELD_BYTES = 40, 1 << 16


@dataclasses.dataclass(frozen=True)
class Asked:
    """A form that has been read."""

    clip: Audio
    warnings: list[str]
    language: str
    prompt: str
    format: str
    body: Generation
    owner: str
    long_audio: LongAudio | None


async def read(service: Service, http: HttpRequest) -> Asked:
    check_content_type(http, "multipart/form-data")
    async with http.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
        data = await _file(form).read()
        words = {name: value for name, value in form.items() if isinstance(value, str)}
    service.check_model(words.get("model"))
    format = words.get("response_format", "json")
    if format not in FORMATS:
        raise _wrong("response_format", f"one of {', '.join(FORMATS)}", format)
    for name in ("timestamp_granularities[]", "include[]", "chunking_strategy"):
        if name in words and words[name] != "auto":
            raise _wrong(name, "none: the model tells no times and no scores here", words[name])
    body = Generation.model_validate(
        {name: _number(words[name], name, kind) for name, kind in NUMBERS.items() if name in words}
        | {"stream": words.get("stream", "false").lower() == "true"}
    )
    prompt, language = words.get("prompt", ""), words.get("language", "")
    service.check_text(len(prompt) + len(language), "prompt")
    long_audio = _long_audio(words.get("long_audio"), service.settings.long_audio)
    hearing = service.hearing(split=long_audio is not None)
    clip = await service.in_worker(hearing.bytes, data, "file")
    owner = service.owner(http, words.get("user"))
    return Asked(clip, hearing.warnings, language, prompt, format, body, owner, long_audio)


async def respond(service: Service, asked: Asked, reply: Reply):
    (sampling,) = to_sampling(asked.body, service.settings.sampling, 1)
    if asked.body.temperature is None:
        sampling = dataclasses.replace(sampling, temperature=0.0)  # what was said, not what might have been
    words = [service.settings.transcribe]
    if asked.language:
        words.append(f"The language is {asked.language}.")
    if asked.prompt:
        words.append(f"Context: {asked.prompt}")
    conversation = Conversation((human(asked.clip, " ".join(words)),))
    request = Request(
        conversation,
        sampling,
        thinking=False,
        priority=asked.body.priority or 0,
        owner=asked.owner,
        long_audio=asked.long_audio,
        id=f"transcribe-{uuid.uuid4().hex}",
    )
    choice = Choice(0, sampling, "none")
    warned = {"warnings": asked.warnings} if asked.warnings else {}
    async with service.run([request], asked.clip.seconds) as events:
        if asked.body.stream:
            return await reply.events(_events(choice, events, warned))
        pieces: list[Piece] = []
        async for event in events:
            if isinstance(event, TextDelta | Finished):
                pieces += choice.feed(event)
    text = join(pieces)["content"]
    if asked.format == "text":
        said = "; ".join(asked.warnings).encode("ascii", "replace").decode()
        await reply.whole(PlainTextResponse(text + "\n", headers={"X-Warning": said} if said else None))
    elif asked.format == "json":
        await reply.json({"text": text, "usage": _usage(choice)} | warned)
    else:
        seconds = asked.clip.seconds
        made = {"task": "transcribe", "language": asked.language or "unknown", "duration": seconds, "text": text}
        await reply.json(made | {"usage": {"type": "duration", "seconds": seconds}} | warned)


async def _events(
    choice: Choice, events: AsyncIterator[SplitEvent], warned: dict[str, Any]
) -> AsyncIterator[dict[str, Any] | str]:
    """OpenAI's events of a streamed transcription."""
    pieces: list[Piece] = []
    async for event in events:
        if not isinstance(event, TextDelta | Finished):
            if (text := comment(event)) is not None:
                yield text
            continue
        for piece in choice.feed(event):
            pieces.append(piece)
            if text := piece.delta.get("content"):
                yield {"type": "transcript.text.delta", "delta": text}
    yield {"type": "transcript.text.done", "text": join(pieces)["content"], "usage": _usage(choice)} | warned


def _usage(choice: Choice) -> dict[str, Any]:
    assert choice.completion is not None
    sizes = choice.completion.usage
    return {
        "type": "tokens",
        "input_tokens": sizes.prompt_tokens,
        "output_tokens": sizes.completion_tokens,
        "total_tokens": sizes.prompt_tokens + sizes.completion_tokens,
        "input_token_details": {
            "audio_tokens": sizes.audio_tokens,
            "text_tokens": sizes.prompt_tokens - sizes.audio_tokens,
        },
    }


def _long_audio(asked: str | None, default: LongAudio | None) -> LongAudio | None:
    """What is said in the windows is joined, whatever else answers are merged by."""
    if asked not in (None, "refuse", "split"):
        raise _wrong("long_audio", "refuse or split", asked)
    split = default if asked is None else LongAudio.of(asked)
    return split and dataclasses.replace(split, merge="join")


def _file(form: FormData) -> UploadFile:
    found = form.get("file")
    if not isinstance(found, UploadFile):
        raise _wrong("file", "a sound file", found)
    return found


def _number(text: str, name: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise _wrong(name, "a number", text) from None


def _wrong(name: str, expected: str, found: Any) -> ApiError:
    return ApiError(f"{name}: expected {expected}, found {shown(found)}", param=name, code="invalid_value")
