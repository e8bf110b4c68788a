"""Four lines of use: load a model, ask about sound, read what it thought and answered."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from stepaudio_jax import checkpoints
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.inference import long_audio
from stepaudio_jax.inference.audio_input import Sound, load_sounds
from stepaudio_jax.inference.engine import Engine, EngineOptions
from stepaudio_jax.inference.types import Completion, Finished, LongAudio, Request, SamplingParams, SplitEvent
from stepaudio_jax.inputs import InputError, field_problem, flag_problem, read_object
from stepaudio_jax.parallel import ShardingRules, make_mesh
from stepaudio_jax.text import Conversation, human

GENERATION_LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0, 1e6),
    "top_k": (0, (1 << 31) - 1),
    "top_p": (1e-9, 1),
    "min_p": (0, 1),
    "repetition_penalty": (1e-6, 1e6),
    "max_new_tokens": (1, (1 << 31) - 1),
}
"""What is read of a generation_config.json, with the least and the largest value."""


class StepAudio:
    """A loaded model, ready to be asked.

    Example:
      >>> model = StepAudio.load("tiny")
      >>> reply = model.ask(["scene.wav"], "How many tones do you hear?")
      >>> reply.think, reply.answer
    """

    def __init__(self, engine: Engine, defaults: SamplingParams):
        self.engine, self.defaults = engine, defaults

    @classmethod
    def load(
        cls,
        checkpoint: epath.PathLike = "tiny",
        *,
        dtype: Any = None,
        options: EngineOptions | None = None,
        yarn_factor: float | None = None,
        mesh: Mapping[str, int] | None = None,
    ) -> StepAudio:
        """Loads a checkpoint folder, or "tiny", the model that comes with the package.

        Args:
          dtype: of the weights in memory; by default bfloat16 as served, and float32 on a CPU, which has no fast
            bfloat16 products.
          options: of the engine.
          yarn_factor: so many times the checkpoint's positions, by YaRN, for sound that is longer than they hold. It
            was no part of the release, and changes answers about short sound too: `StepAudioConfig.with_yarn`.
          mesh: see `load_engine`.

        Raises:
          CheckpointError, ConfigError, TokenizerError: what is wrong with the folder, and where.
          MeshError, ShardingError: a mesh that does not fit the devices, or the model.
        """
        engine = load_engine(checkpoint, dtype=dtype, options=options, yarn_factor=yarn_factor, mesh=mesh)
        return cls(engine, sampling_defaults(checkpoint))

    def ask(self, sounds: Sequence[Sound], question: str, **options: Any) -> Completion:
        """Asks one question about some sounds (paths, or float32 arrays at 16 kHz), heard in the given order.

        Args:
          options: as `request` takes them.

        Raises:
          AudioError: a file or array that cannot be used, and why; files of more sound than the model has positions
            for.
          PromptError: more sound than the model has positions for.
        """
        request = self.request(sounds, question, **options)
        *_, last = self.generate([request])
        assert isinstance(last, Finished)
        return last.completion

    def request(
        self,
        sounds: Sequence[Sound],
        question: str,
        *,
        long_audio: str = "refuse",
        window_seconds: float | None = None,
        overlap_seconds: float | None = None,
        merge: str | None = None,
        **sampling: Any,
    ) -> Request:
        """The request that `ask` sends, for callers who want its events as they come.

        Args:
          long_audio: of sound that does not fit: "refuse", or "split", to hear its longest clip in windows.
          window_seconds, overlap_seconds, merge: how to split, see `LongAudio`.
          sampling: fields of SamplingParams that differ from the checkpoint's defaults.
        """
        split = LongAudio.of(
            long_audio, window_seconds=window_seconds, overlap_seconds=overlap_seconds, merge=merge
        )
        clips = load_sounds(sounds, self.engine.max_length, split=split is not None)
        params = dataclasses.replace(self.defaults, **sampling)
        return Request(Conversation((human(*clips, question),)), params, long_audio=split)

    def generate(self, requests: Iterable[Request]) -> Iterator[SplitEvent]:
        """Events as they come, the last of a request being its Finished."""
        return long_audio.generate(self.engine, requests)


def load_engine(
    checkpoint: epath.PathLike = "tiny",
    *,
    dtype: Any = None,
    options: EngineOptions | None = None,
    yarn_factor: float | None = None,
    mesh: Mapping[str, int] | None = None,
) -> Engine:
    """An engine of a checkpoint. Each device reads only its own part of the weights.

    Args:
      mesh: sizes by axis, such as {"data": 2, "tensor": 4}: rows of the batch go over data, heads over tensor. By
        default one device of a CPU, and of accelerators all: over tensor as far as the heads can be dealt out.

    Raises: as `StepAudio.load`.
    """
    options, rules = options or EngineOptions(), None
    config = checkpoints.read_config(checkpoint, yarn_factor=yarn_factor)
    devices = jax.device_count()
    if mesh is None and devices > 1 and jax.default_backend() != "cpu":
        mesh = serving_mesh(config, devices)
    if mesh is not None:
        rules = ShardingRules(make_mesh(mesh), "serve")
        rules.check(config, {"batch": ("max_rows", options.max_rows)})
    model, tokenizer = checkpoints.load(
        checkpoint, dtype=dtype or serving_dtype(), placement=rules and rules.sharding, yarn_factor=yarn_factor
    )
    return Engine(model, tokenizer, options, rules=rules)


def serving_mesh(config: StepAudioConfig, devices: int) -> dict[str, int]:
    """Tensor over as many devices as all that is dealt out over it divides by, data over the rest: the fewest bytes of
    weights a device reads for a token."""
    decoder = config.decoder
    dealt = [decoder.num_attention_heads, decoder.num_key_value_heads, decoder.intermediate_size, decoder.vocab_size]
    if config.audio_encoder_config is not None:
        dealt.append(config.audio.n_audio_state)
    tensor = math.gcd(devices, *dealt)
    return {"data": devices // tensor, "tensor": tensor}


def serving_dtype() -> Any:
    """Of weights that are only read: bfloat16, and float32 on a CPU, which has no fast bfloat16 products."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def sampling_defaults(checkpoint: epath.PathLike, unasked: SamplingParams | None = None) -> SamplingParams:
    """Sampling by the checkpoint's generation_config.json, where it has one; `unasked` is for what that leaves open.

    Raises:
      CheckpointError: not a JSON object, or a value of another type or out of its range.
    """
    unasked = unasked or SamplingParams()
    file = checkpoints.resolve(checkpoint) / "generation_config.json"
    if not file.exists():
        return unasked
    try:
        values = read_object(file)
    except InputError as error:
        raise checkpoints.CheckpointError(str(error)) from None
    kinds = {field.name: str(field.type) for field in dataclasses.fields(SamplingParams)}
    given = {name: values[name] for name in GENERATION_LIMITS if values.get(name) is not None}
    sample = values.get("do_sample")
    if sample is not None and (problem := flag_problem(sample)) is not None:
        raise checkpoints.CheckpointError(f"{file}: do_sample: {problem}")
    for name, value in given.items():
        if (problem := field_problem(value, kinds[name], *GENERATION_LIMITS[name])) is not None:
            raise checkpoints.CheckpointError(f"{file}: {name}: {problem}")
    if sample is False:
        given["temperature"] = 0.0
    return dataclasses.replace(unasked, **given)
