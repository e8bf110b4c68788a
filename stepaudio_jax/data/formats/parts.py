"""One part of a message's content: text or sound, as Hugging Face and OpenAI write them.

    {"type": "text", "text": "How many tones?"}
    {"type": "audio", "audio": "clips/17.wav"}            also "path", "url", "audio_url"; {"bytes": …}, {"array": …}
    {"type": "input_audio", "input_audio": {"data": "<base64>", "format": "wav"}}
    {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,…"}}
    {"type": "audio"}                                     the next clip of the record's column `audios`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stepaudio_jax.data.formats.fields import DialogueError, called, extra, field, plain
from stepaudio_jax.data.sounds import Clips, unread_of
from stepaudio_jax.text import Audio, Text

SOUND = ("audio", "path", "url", "audio_url")
TYPES = ("text", "audio", "audio_url", "input_audio")


def is_sound(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in TYPES[1:]


def names_no_sound(part: Any) -> bool:
    """Whether a part is of sound, and says nowhere which."""
    return isinstance(part, Mapping) and part.get("type") == "audio" and all(part.get(key) is None for key in SOUND)


def text_of(part: Any) -> str | None:
    """The words of a part of text; None for another one."""
    if isinstance(part, Mapping):
        part = part.get("text") if part.get("type") == "text" else None
    return part if isinstance(part, str) else None


def read(part: Any, path: str, following: Iterator[Audio], sounds: Clips) -> Text | Audio:
    """A part to text or a clip; one that names no sound takes the next of `following`.

    Raises:
      DialogueError, AudioError: it cannot be used, and why.
    """
    if isinstance(part, str):
        return Text(part)
    if not isinstance(part, Mapping):
        raise DialogueError(f"{path}: expected an object, found {called(type(part))}")
    kind = part.get("type")
    if kind == "text":
        return Text(field(part, "text", str, f"{path}."))
    if kind == "input_audio":
        return sounds.load_base64(field(field(part, kind, dict, f"{path}."), "data", str, f"{path}.{kind}."), path)
    if kind not in TYPES:
        raise DialogueError(f'{path}.type: expected one of {", ".join(TYPES)}, found "{kind}"')
    if names_no_sound(part):
        return next(following)
    reference = part.get(_named(part))
    if isinstance(reference, Mapping) and reference.get("url") is not None:
        reference = reference["url"]
    return sounds.load(reference, path)


def unread(part: Any) -> dict[str, Any]:
    """The fields of a part that `read` does not look at, by name; those within its sound as "audio.duration"."""
    if not isinstance(part, Mapping):
        return {}
    kind = part.get("type")
    name = kind if kind in ("text", "input_audio") else _named(part)
    rest = extra(part, ("type", name))
    inside = part.get(name)
    if not isinstance(inside, Mapping):
        return rest
    if name == "input_audio":
        found = extra(inside, ("data", "format"))
    else:
        found = extra(inside, ("url",)) if inside.get("url") is not None else plain(unread_of(inside))
    return rest | {f"{name}.{key}": value for key, value in found.items()}


def _named(part: Mapping[str, Any]) -> str:
    """The field of a part that names its sound."""
    return next((key for key in SOUND if part.get(key) is not None), SOUND[0])
