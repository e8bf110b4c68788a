"""Random checkpoints in the exact released layout: for tests, and to rehearse a launch without the weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from rich.console import Console

from checkpoints_convert.from_hf import DTYPE_CHOICES
from checkpoints_convert.initialise import qwen2_audio_names
from checkpoints_convert.safetensors_files import CODES, Tensor
from checkpoints_convert.sinks import ShardSink
from checkpoints_convert.sources import ConversionError
from checkpoints_convert.to_hf import DEFAULT_SHARD, TORCH_DTYPES
from checkpoints_convert.transfer import destination_problems, transfer
from stepaudio_jax import miniature
from stepaudio_jax.config import ConfigError, RopeScaling, StepAudioConfig
from stepaudio_jax.models.hf_names import released_shapes
from stepaudio_jax.text import Tokenizer

SHAPES = ("nested", "flat", "parts")


class RandomSource:
    """Tensors drawn from a seed, the same for the same name, whatever is read first.

    Weights are uniform in ±√3 · fan_in^−½, so that activations neither die nor explode; norms' scales are near 1.
    """

    BLOCK = 1 << 16
    """Numbers that are drawn together: a row range need not start where a block does."""

    def __init__(self, tensors: Mapping[str, Tensor], seed: int):
        self.tensors = tensors
        self._seed = seed

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        tensor = self.tensors[name]
        row = math.prod(tensor.shape[1:])
        first, last = start * row // self.BLOCK, -(-stop * row // self.BLOCK)
        blocks = np.concatenate([self._block(name, number) for number in range(first, last)])
        values = blocks[start * row - first * self.BLOCK :][: (stop - start) * row]
        if name.endswith(("norm.weight", "_ln.weight")):
            values = 1 + values / 8
        elif len(tensor.shape) == 1:
            values = values / 8
        elif "embed" not in name:
            values = values * np.float32(math.sqrt(3 / row))
        return values.reshape(stop - start, *tensor.shape[1:]).astype(tensor.dtype)

    def multiple(self, name: str) -> int:
        return 1

    def _block(self, name: str, number: int) -> np.ndarray:
        """Uniform in ±1, float32."""
        key = hashlib.sha256(f"{self._seed} {name} {number}".encode()).digest()
        rng = np.random.Generator(np.random.SFC64(np.frombuffer(key, np.uint32)))
        return rng.random(self.BLOCK, np.float32) * 2 - 1

    def fingerprint(self) -> str:
        return f"random {self._seed}"


def overridden(config: StepAudioConfig, overrides: Sequence[str]) -> StepAudioConfig:
    """A config with fields replaced: text_config.num_hidden_layers=2, audio_encoder_config.n_audio_layer=2.

    Raises:
      ConfigError: an unknown field, or a value of another type.
    """
    changes: dict[str, dict[str, Any]] = {"text_config": {}, "audio_encoder_config": {}}
    for override in overrides:
        path, _, text = override.partition("=")
        part, _, field = path.partition(".")
        known = {f.name: f for f in dataclasses.fields(getattr(config, part))} if part in changes else {}
        if field not in known:
            names = [f"{p}.{f.name}" for p in changes for f in dataclasses.fields(getattr(config, p))]
            raise ConfigError(f"{override}: expected NAME=VALUE with a name out of {', '.join(names)}")
        changes[part][field] = _value(override, text, getattr(getattr(config, part), field))
    if "hidden_size" in changes["text_config"]:
        changes["audio_encoder_config"].setdefault("llm_dim", changes["text_config"]["hidden_size"])
    return dataclasses.replace(
        config,
        text_config=dataclasses.replace(config.decoder, **changes["text_config"]),
        audio_encoder_config=dataclasses.replace(config.audio, **changes["audio_encoder_config"]),
    )


def _value(override: str, text: str, current: Any) -> Any:
    """What an override gives, of the type that is there now (None: `rope_scaling`, a JSON object)."""
    try:
        value = json.loads(text.lower())
    except ValueError:
        value = text
    if isinstance(current, RopeScaling | None) and isinstance(value, dict | None):
        return RopeScaling.from_hf(value)
    if isinstance(current, float) and type(value) is int:
        return float(value)
    if type(value) is not type(current):
        raise ConfigError(f"{override}: expected a value such as {current!r}, found {text!r}")
    return value


def synth(
    dst: epath.PathLike,
    *,
    preset: str = "tiny",
    overrides: Sequence[str] = (),
    shape: str = "nested",
    dtype: str = "bf16",
    max_shard_size: int = DEFAULT_SHARD,
    seed: int = 0,
    overwrite: bool = False,
    show: Console | None = None,
) -> None:
    """Writes a random Hugging Face checkpoint with a small tokenizer.

    Args:
      shape: "nested" or "flat" config.json; "parts" writes DST/decoder (a Qwen2ForCausalLM) and DST/encoder (a
        Qwen2AudioForConditionalGeneration), the two halves a new model starts from.

    Raises:
      ConversionError, ConfigError: what is wrong with the request or the destination, before anything is written.
    """
    if shape not in SHAPES:
        raise ConfigError(f'shape: expected one of {", ".join(SHAPES)}, found "{shape}"')
    dst = epath.Path(dst)
    config = overridden(StepAudioConfig.preset(preset), overrides)
    tokenizer = miniature.build_tokenizer(min(1024, config.decoder.vocab_size), samples=500)
    ids = Tokenizer(tokenizer)
    config = dataclasses.replace(config, eos_token_ids=(ids.end_of_text, ids.end_of_turn), pad_token_id=ids.end_of_text)
    stored = DTYPE_CHOICES[dtype]
    tensors = {name: Tensor(stored, size) for name, size in released_shapes(config).items()}
    if shape == "parts":
        decoder = {name: t for name, t in tensors.items() if name.startswith(("model.", "lm_head."))}
        theirs = {theirs: tensors[ours] for ours, theirs in qwen2_audio_names(config).items()}
        width = config.decoder.hidden_size
        theirs |= {  # what Qwen2-Audio holds besides its encoder, in small
            "multi_modal_projector.linear.weight": Tensor(stored, (width, config.audio.n_audio_state)),
            "multi_modal_projector.linear.bias": Tensor(stored, (width,)),
        }
        folders = {"decoder": decoder, "encoder": theirs}
    else:
        folders = {"": tensors}
    targets = {part: dst / part if part else dst for part in folders}
    problems = [
        problem
        for part, held in folders.items()
        for problem in destination_problems(targets[part], sum(t.nbytes for t in held.values()), overwrite=overwrite)
    ]
    if problems:
        raise ConversionError(*problems)
    for part, held in folders.items():
        values = config.to_hf(part or shape)
        values["torch_dtype"] = TORCH_DTYPES[CODES[stored]]
        files = {"config.json": json.dumps(values, indent=2) + "\n"}
        if part != "encoder":
            files["tokenizer.json"] = tokenizer.to_str()
            generation = {"eos_token_id": list(config.eos_token_ids), "pad_token_id": config.pad_token_id}
            files["generation_config.json"] = json.dumps(generation, indent=2) + "\n"
        transfer(
            RandomSource(held, seed),
            targets[part],
            lambda folder, held=held: ShardSink(folder, held, max_shard_size),
            kind=f"synthetic {max_shard_size}",
            tensors=held,
            files=files,
            about={"source": f"random, seed {seed}", "dtype": dtype},
            overwrite=overwrite,
            show=show,
        )
