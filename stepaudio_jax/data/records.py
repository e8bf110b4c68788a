"""A stored record: one dialogue with its sound inside, as the bytes of a small safetensors file.

    conversation    uint8, JSON: {"turns": [{"role": "human", "parts": [{"audio": 0, "name": "a.wav"},
                    {"text": "What is it?"}]}, …], "tools": …, "extra": {…}, "rejected": {…}, "where": "a.jsonl:7"}
    audio.N         clip N at 16 kHz: uint8, a FLAC stream (16 bit for samples that are exactly 16-bit, else 24 bit,
                    off by at most 2⁻²³), or float32 [samples] as they are where any lies beyond ±1
    mel.N           if asked for at the build: its log-mel, float32 [frames, 128], chunk after chunk
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
import soundfile

from stepaudio_jax.audio import SAMPLE_RATE, AudioError, check_samples, load_audio_bytes
from stepaudio_jax.data.samples import RecordError, Sample
from stepaudio_jax.text import Audio, Conversation, Text, Turn

MAX_SECONDS = 7200.0
"""Of one clip: more than 65,536 tokens hold. A few bytes of FLAC can claim hours of silence."""

BANDS = 128


def encode_sample(sample: Sample, mels: Mapping[int, np.ndarray] | None = None) -> bytes:
    """The bytes of a record. Clips that share their samples are stored once.

    Args:
      mels: log-mel of each clip, by its number in `clips(sample)`.

    Raises:
      RecordError: text or extra columns that JSON cannot hold, or a clip that check_samples refuses.
    """
    numbers = {id(clip.samples): i for i, clip in enumerate(clips(sample))}
    document = _conversation_json(sample.conversation, numbers)
    if sample.rejected is not None:
        document["rejected"] = _conversation_json(sample.rejected, numbers)
    document["where"] = sample.where
    try:
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        tensors = {f"audio.{i}": _encode_clip(clip) for i, clip in enumerate(clips(sample))}
    except (TypeError, ValueError, RecursionError) as error:  # numpy values, lone surrogates, circles; AudioError
        raise RecordError(f"{sample.where}: {error}") from None
    tensors |= {f"mel.{i}": np.ascontiguousarray(mel, np.float32) for i, mel in (mels or {}).items()}
    return safetensors.numpy.save({"conversation": np.frombuffer(text, np.uint8), **tensors})


def decode_sample(data: bytes, where: str = "record") -> Sample:
    """The sample of a record's bytes; `where` is what errors call it.

    Raises:
      RecordError: bytes that are not a record as `encode_sample` writes it.
    """
    tensors = _tensors(data, where)
    try:
        document = json.loads(tensors["conversation"].tobytes())
        sounds = [_decode_clip(tensors[f"audio.{i}"], f"audio.{i}") for i in range(_count(tensors, "audio."))]
        rejected = document.get("rejected")
        return Sample(
            _conversation(document, sounds),
            None if rejected is None else _conversation(rejected, sounds),
            _typed(document, "where", str),
        )
    except KeyError as error:
        raise RecordError(f"{where}: no {error} in the record") from None
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise RecordError(f"{where}: not a record ({' '.join(str(error).split())})") from None


def decode_mels(data: bytes, where: str = "record") -> tuple[np.ndarray, ...]:
    """The stored log-mels of a record's clips, float32 [frames, 128]; empty where the build was not asked for them.

    Raises:
      RecordError: as `decode_sample`.
    """
    tensors = _tensors(data, where)
    try:
        mels = tuple(tensors[f"mel.{i}"] for i in range(_count(tensors, "mel.")))
    except KeyError as error:
        raise RecordError(f"{where}: no {error} in the record") from None
    for mel in mels:
        if mel.dtype != np.float32 or mel.ndim != 2 or mel.shape[1] != BANDS:
            raise RecordError(f"{where}: mel: expected float32 [frames, {BANDS}], found {mel.dtype} {list(mel.shape)}")
    return mels


def clips(sample: Sample) -> list[Audio]:
    """The different clips of a sample, in the order of their numbers."""
    audio = sample.conversation.audio + (sample.rejected.audio if sample.rejected else ())
    return list({id(clip.samples): clip for clip in audio}.values())


def _conversation_json(conversation: Conversation, numbers: Mapping[int, int]) -> dict[str, Any]:
    document: dict[str, Any] = {"turns": [_turn_json(turn, numbers) for turn in conversation.turns]}
    if conversation.tools is not None:
        document["tools"] = conversation.tools
    if conversation.extra:
        document["extra"] = dict(conversation.extra)
    return document


def _turn_json(turn: Turn, numbers: Mapping[int, int]) -> dict[str, Any]:
    document: dict[str, Any] = {"role": turn.role, "parts": []}
    for part in turn.parts:
        if isinstance(part, Audio):
            document["parts"].append({"audio": numbers[id(part.samples)], "name": part.name})
        else:
            document["parts"].append({"text": part.text} | ({"allow_special": True} if part.allow_special else {}))
    document |= {name: getattr(turn, name) for name in ("think", "loss") if getattr(turn, name) is not None}
    if not turn.complete:
        document["complete"] = False
    if turn.extra:
        document["extra"] = dict(turn.extra)
    return document


def _conversation(document: Any, sounds: list[np.ndarray]) -> Conversation:
    turns = tuple(_turn(turn, sounds) for turn in _typed(document, "turns", list))
    return Conversation(turns, _typed(document, "tools", str, None), _typed(document, "extra", dict, {}))


def _turn(document: Any, sounds: list[np.ndarray]) -> Turn:
    return Turn(
        _typed(document, "role", str),
        tuple(_part(part, sounds) for part in _typed(document, "parts", list)),
        _typed(document, "think", str, None),
        _typed(document, "loss", bool, None),
        _typed(document, "complete", bool, True),
        _typed(document, "extra", dict, {}),
    )


def _part(document: Any, sounds: list[np.ndarray]) -> Text | Audio:
    if "text" in document:
        return Text(_typed(document, "text", str), _typed(document, "allow_special", bool, False))
    number = _typed(document, "audio", int)
    if not 0 <= number < len(sounds):
        raise ValueError(f"audio: clip {number} of {len(sounds)}")
    return Audio(sounds[number], _typed(document, "name", str))


_REQUIRED = object()


def _typed(document: Any, field: str, kind: type, default: Any = _REQUIRED) -> Any:
    """A field of a JSON object, of exactly the type expected."""
    value = document.get(field, default)
    if value is _REQUIRED:
        raise KeyError(field)
    if value is not default and type(value) is not kind:
        raise ValueError(f"{field}: expected {kind.__name__}, found {type(value).__name__}")
    return value


def _tensors(data: bytes, where: str) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(data)
    except Exception as error:  # the library's own for most malformed bytes, numpy's and KeyError for the rest
        raise RecordError(f"{where}: not a record ({' '.join(str(error).split())})") from None


def _count(tensors: Mapping[str, np.ndarray], prefix: str) -> int:
    return sum(name.startswith(prefix) for name in tensors)


def _encode_clip(clip: Audio) -> np.ndarray:
    samples = check_samples(clip.samples, clip.name)
    if len(samples) > MAX_SECONDS * SAMPLE_RATE:
        raise AudioError(f"{clip.name}: {clip.seconds:.0f} s of sound, more than the {MAX_SECONDS:.0f} s allowed")
    if np.abs(samples).max() > 1:
        return np.ascontiguousarray(samples)
    sixteen = samples * 2**15  # exact: a power of two
    if sixteen.max() < 2**15 and np.array_equal(sixteen, np.round(sixteen)):
        return _flac(sixteen.astype(np.int16), "PCM_16")
    whole = np.minimum(np.round(samples * 2**23), 2**23 - 1)
    return _flac(whole.astype(np.int32) << 8, "PCM_24")


def _flac(samples: np.ndarray, subtype: str) -> np.ndarray:
    stream = io.BytesIO()
    soundfile.write(stream, samples, SAMPLE_RATE, format="FLAC", subtype=subtype)
    return np.frombuffer(stream.getbuffer(), np.uint8)


def _decode_clip(stored: np.ndarray, name: str) -> np.ndarray:
    if stored.dtype == np.float32:
        return check_samples(stored, name)
    data = stored.tobytes()
    if stored.dtype != np.uint8 or not data.startswith(b"fLaC"):
        raise ValueError(f"{name}: expected a FLAC stream or float32, found {stored.dtype} {list(stored.shape)}")
    return load_audio_bytes(data, name, max_seconds=MAX_SECONDS)
