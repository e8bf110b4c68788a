"""LoRA (arXiv:2106.09685): beside a kernel W that stays, two narrow matrices A and B that are trained.

    y = x·W + scale·(x·A)·B      A [in, rank], B [rank, out]; of a stack of layers both have a leading `layers` axis

B starts at zero, so that a model with fresh adapters computes what it did without. A·B is put together only by
`merge_lora`. A is stored like the kernel's rows, B like its columns (parallel/rules.py). Dropout on x, which the paper
does not use, is not offered: it would carry random state through the step and over every shard.

Module paths end in `lora.a` and `lora.b`: that is how the trainer and the checkpoints know these parameters.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stepaudio_jax.config import ConfigError, StepAudioConfig
from stepaudio_jax.inputs import field_problem, shown
from stepaudio_jax.models.layers import Linear, Lora, param, zeros
from stepaudio_jax.models.step_audio import StepAudio

DECODER_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MODULES = ("encoder", "adaptor", "decoder")
LIMITS = {"rank": (1, 1 << 16), "alpha": (1e-9, 1e9)}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which matrices get adapters, and how large.

    Attributes:
      rank: columns of A and rows of B.
      alpha: the product of A and B counts alpha / rank.
      targets: names of linear layers, as the modules call them.
      modules: where to look for them: encoder, adaptor, decoder.
      rslora: count the product alpha / √rank instead (arXiv:2312.03732), which keeps large ranks from learning slower.

    Raises:
      ConfigError: a rank or alpha that is not positive, or a module that does not exist.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = DECODER_MATRICES
    modules: tuple[str, ...] = ("decoder",)
    rslora: bool = False

    def __post_init__(self):
        if all(isinstance(size, int | float) for size in (self.rank, self.alpha)) and min(self.rank, self.alpha) <= 0:
            raise ConfigError(f"lora: expected a positive rank and alpha, found rank {self.rank}, alpha {self.alpha}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if (problem := field_problem(value, str(field.type), *LIMITS.get(field.name, (1, 1)))) is not None:
                raise ConfigError(f"lora.{field.name}: {problem}")
            if field.name in ("targets", "modules"):
                if isinstance(value, str) or not all(isinstance(name, str) for name in value):
                    raise ConfigError(f"lora.{field.name}: expected names, found {shown(value)}")
                object.__setattr__(self, field.name, tuple(value))
        if unknown := [name for name in self.modules if name not in MODULES]:
            raise ConfigError(f"lora.modules: expected some of {', '.join(MODULES)}, found {unknown[0]}")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def add_lora(model: StepAudio, config: LoraConfig, rngs: nnx.Rngs) -> None:
    """Puts adapters beside the chosen matrices, in place; float32, whatever the model is in. Of arrays or of shapes.

    A starts uniform within ±1/√in, as PEFT's does, B at zero.

    Raises:
      ConfigError: a target that no chosen module has, naming the nearest, or a model that has adapters already.
    """
    linears = {path: layer for path, layer in linear_layers(model) if path[0] in config.modules}
    if any(layer.lora is not None for layer in linears.values()):
        raise ConfigError("lora: the model has adapters already; merge them first")
    known = sorted({path[-1] for path in linears})
    for target in config.targets:
        if target not in known:
            near = difflib.get_close_matches(target, known, 1)
            raise ConfigError(
                f"lora.targets: no linear layer {target} in {', '.join(config.modules)}, which have {', '.join(known)}"
                + (f"; did you mean {near[0]}?" if near else "")
            )
    for path, layer in linears.items():
        if path[-1] in config.targets:
            layer.lora = _fresh(layer, config, rngs)


def adapted_shapes(sizes: StepAudioConfig, lora: LoraConfig) -> StepAudio:
    """A model with adapters, of shapes only."""

    def adapted() -> StepAudio:
        model = StepAudio(sizes, rngs=nnx.Rngs(0))
        add_lora(model, lora, nnx.Rngs(0))
        return model

    return nnx.eval_shape(adapted)


def _fresh(layer: Linear, config: LoraConfig, rngs: nnx.Rngs) -> Lora:
    *stack, inputs, outputs = layer.kernel.shape
    layers = stack[0] if stack else None
    into, out = layer.kernel.get_metadata("logical_axes")[-2:]
    start = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=(0,) if stack else ())
    a = param(rngs, start, (inputs, config.rank), (into, "lora_rank"), layers, jnp.float32)
    b = param(rngs, zeros, (config.rank, outputs), ("lora_rank", out), layers, jnp.float32)
    return Lora(a, b, config.scale)


def merge_lora(model: StepAudio) -> None:
    """W + scale·A·B in place of W and its adapters, in place: computed in float32, rounded once to W's type, one layer
    of a stack at a time."""
    for _, layer in linear_layers(model):
        if layer.lora is not None:
            kernel, lora = layer.kernel[...], layer.lora
            merge = jax.jit(_merged, static_argnums=3, out_shardings=kernel.sharding)
            layer.kernel.set_value(merge(kernel, lora.a[...], lora.b[...], lora.scale))
            layer.lora = nnx.data(None)


def _merged(kernel: Float[Array, "*L I O"], a: Float[Array, "*L I R"], b: Float[Array, "*L R O"], scale: float):
    def one(matrices):
        w, a, b = (x.astype(jnp.float32) for x in matrices)
        return (w + scale * jnp.matmul(a, b, precision="highest")).astype(kernel.dtype)

    return one((kernel, a, b)) if kernel.ndim == 2 else jax.lax.map(one, (kernel, a, b))


def is_lora(path: tuple) -> bool:
    """Whether the parameter at a module path is an adapter's."""
    return "lora" in path


def linear_layers(model: StepAudio) -> Iterator[tuple[tuple[str, ...], Linear]]:
    """Every linear layer with its path from the model, in the order of the paths."""
    found = {tuple(map(str, path)): module for path, module in nnx.iter_modules(model) if isinstance(module, Linear)}
    yield from sorted(found.items())
