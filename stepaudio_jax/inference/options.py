"""How large an engine is, and how full."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """How large an engine is. What is None is settled by the device.

    Attributes:
      max_rows: most requests that run together (of each lane, over a mesh with a data axis).
      max_length: most tokens of prompt and reply; by default the model's positions.
      page_size: tokens of a page; by default 64 on a TPU, else 16.
      memory: bytes for keys and values; by default what is free (memory.py).
      pages: so many instead, whatever that takes.
      prefill_tokens: most tokens of prompts in one call (prompts.py); by default 2,048 on a TPU, else 512.
      burst: most decode steps between two looks of the host.
      burst_seconds: a burst is as many steps as take about so long: what joins meanwhile waits for its end. One process
        alone; several take whole bursts, for their clocks differ.
      sounds: chunks of sound whose features are kept.
      share_prefixes: let requests use pages that others have filled with the same tokens.
      max_waiting: most requests that may wait.
      weights: "int8" keeps the decoder's matrices as integers, a scale for each output (models/layers.py).
      kv_cache: "int8" keeps keys and values so, a scale for each channel (calibration.py).
    """

    max_rows: int = 32
    max_length: int | None = None
    page_size: int | None = None
    memory: int | None = None
    pages: int | None = None
    prefill_tokens: int | None = None
    burst: int = 16
    burst_seconds: float = 0.1
    sounds: int = 64
    share_prefixes: bool = True
    max_waiting: int = 1024
    weights: str | None = None
    kv_cache: str | None = None

    def __post_init__(self):
        for name in ("weights", "kv_cache"):
            if (value := getattr(self, name)) not in (None, "int8"):
                raise ValueError(f'{name}: expected "int8" or None, found {value!r}')
        for name in ("max_rows", "burst", "sounds", "max_waiting"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}: expected at least 1, found {value}")


@dataclasses.dataclass(frozen=True)
class EngineStats:
    """Counts since the start, and how full the engine is now.

    Attributes:
      cached_prompt_tokens: tokens of prompts that were found in the cache, among `prompt_tokens`.
      sounds_encoded, sounds_found: chunks of sound that were encoded, and that had been already.
      interruptions: rows that gave up their pages and came back later.
    """

    running: int
    waiting: int
    pages_total: int
    pages_used: int
    pages_cached: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    sounds_encoded: int
    sounds_found: int
    interruptions: int


def powers(most: int, least: int = 1, factor: int = 2) -> list[int]:
    """Bucket sizes: least, least · factor, least · factor² … up to `most`, which is always the last."""
    sizes = []
    while least < most:
        sizes.append(least)
        least *= factor
    return [*sizes, most]
