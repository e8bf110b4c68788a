"""Sounds in the bytes of every format that soundfile writes, and what is done to them."""

import io
from collections.abc import Iterator

import numpy as np
import soundfile

from stepaudio_jax.audio import AudioError, load_audio_bytes

RATE = 16000


def tone(seconds: float = 1.0, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(seconds: float = 1.0, rate: int = RATE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)


def written(samples: np.ndarray, format: str, subtype: str | None = None, rate: int = RATE, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype, **options)
    return file.getvalue()


def all_formats() -> Iterator[tuple[str, str, int, int]]:
    """(format, subtype, channels, rate) of everything that soundfile writes into bytes. RAW has no header, and SD2 is
    two files; WVE is of 8 kHz only."""
    for format in soundfile.available_formats():
        if format in ("RAW", "SD2"):
            continue
        for subtype in soundfile.available_subtypes(format):
            for channels in (1, 2):
                rate = 8000 if format == "WVE" else RATE
                if soundfile.check_format(format, subtype) and _can(format, subtype, channels, rate):
                    yield format, subtype, channels, rate


def _can(format: str, subtype: str, channels: int, rate: int) -> bool:
    try:
        soundfile.write(io.BytesIO(), np.zeros((1, channels)), rate, subtype, format=format)
    except soundfile.LibsndfileError:
        return False
    return True


def taken(data: bytes, **options) -> int | str:
    """How many samples are loaded, or the refusal."""
    try:
        return len(load_audio_bytes(data, "x", **options))
    except AudioError as error:
        assert str(error).startswith("x: ") and "\n" not in str(error)
        return str(error)


def with_serial(data: bytes, number: int) -> bytes:
    """An ogg with another serial number, as a second encoder gives: the checksums are set anew, bit by bit."""
    made, at = bytearray(data), 0
    while at < len(made):
        segments = made[at + 26]
        size = 27 + segments + sum(made[at + 27 : at + 27 + segments])
        made[at + 14 : at + 18] = number.to_bytes(4, "little")
        made[at + 22 : at + 26] = bytes(4)
        made[at + 22 : at + 26] = ogg_crc(bytes(made[at : at + size])).to_bytes(4, "little")
        at += size
    return bytes(made)


def ogg_crc(page: bytes) -> int:
    """As RFC 3533 says: polynomial 0x04c11db7, the highest bit first, from 0."""
    value = 0
    for octet in page:
        value ^= octet << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value >> 31 else value << 1) & 0xFFFFFFFF
    return value
