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

from stepaudio_jax.data.formats.fields import DialogueError, called, field
from stepaudio_jax.data.sounds import Sounds
from stepaudio_jax.text import Audio, Text

SOUND = ("audio", "path", "url", "audio_url")
TYPES = ("text", "audio", "audio_url", "input_audio")


def names_no_sound(part: Any) -> bool:
    """Whether a part is of sound, and says nowhere which."""
    return isinstance(part, Mapping) and part.get("type") == "audio" and all(part.get(key) is None for key in SOUND)


def read(part: Any, path: str, following: Iterator[Audio], sounds: Sounds) -> Text | Audio:
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
    reference = next((part[key] for key in SOUND if part.get(key) is not None), None)
    if isinstance(reference, Mapping) and reference.get("url") is not None:
        reference = reference["url"]
    return sounds.load(reference, path)
