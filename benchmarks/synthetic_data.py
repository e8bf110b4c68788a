"""A synthetic data set to measure with: dialogues in ms-swift's jsonl, about few short sounds that many records share.

Records differ in their text, which is log-normal in length as dialogues are: a tenth has no sound, a third no
reasoning. What a build or a reader does with a record does not depend on whether another names the same sound.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
SOUNDS = 200
SENTENCE = "a low tone rises then falls while two short clicks follow and noise fades under the voice of someone"


def write_synthetic(folder: Path, records: int, *, seconds: tuple[float, float] = (0.5, 2.0), seed: int = 0) -> Path:
    """Writes `records` dialogues and their sounds, 16-bit wav of `seconds` evenly drawn. Returns the jsonl's path."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(SOUNDS):
        soundfile.write(folder / f"{i}.wav", sound(rng, rng.uniform(*seconds)), RATE, subtype="PCM_16")
    chosen = rng.integers(SOUNDS, size=records)
    silent, thoughtless = rng.random(records) < 0.1, rng.random(records) < 1 / 3
    sizes = np.minimum(np.exp(rng.normal(3.5, 0.8, records)), 1000).astype(int)
    text = " ".join(rng.choice(SENTENCE.split(), 4000))
    path = folder / "records.jsonl"
    with path.open("w") as stream:
        for i in range(records):
            start = int(rng.integers(1000))
            words = text[start : start + 5 * sizes[i]]
            think = "" if thoughtless[i] else f"<think>\nI hear this: {words}\n\nSo it is {i}.\n</think>\n"
            placeholder, audios = ("", []) if silent[i] else ("<audio>", [f"{chosen[i]}.wav"])
            messages = [
                {"role": "user", "content": f"{placeholder}What happens in recording {i}?"},
                {"role": "assistant", "content": f"{think}{words[:200]}."},
            ]
            stream.write(json.dumps({"messages": messages, "audios": audios}) + "\n")
    return path


def sound(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """A few harmonics that rise and fall, and noise as of a room: it compresses as recordings do, not as silence."""
    time = np.arange(int(seconds * RATE)) / RATE
    hertz = rng.uniform(80, 400)
    tones = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 6))
    envelope = np.sin(np.pi * time / seconds) ** 2
    return (0.15 * envelope * tones + 0.01 * rng.standard_normal(len(time))).astype(np.float32)
