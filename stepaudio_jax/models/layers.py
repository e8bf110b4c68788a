"""Building blocks: parameters that know their logical axes, norms, rotary embedding, and stacks of layers.

A stack of identical layers is one module whose parameters have a leading `layers` axis. `run_layers` scans over
it, so that a 64-layer model compiles in the time of one layer. `unstack` turns it into separate layers for
machines on which slicing a stack costs a copy of the weights (a CPU's decode loop moves half the bytes).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from stepaudio_jax.config import ConfigError, DecoderConfig
from stepaudio_jax.parallel.collectives import gather_param, sum_over
from stepaudio_jax.parallel.rules import current

AnyArray = Array | np.ndarray
"""What may lie on the host or on a device."""

Axes = tuple[str | None, ...]

SAVED = {
    "full": (),
    "attention": ("qkv", "attention"),
    "gate": ("qkv", "attention", "middle", "gate"),
    "products": ("qkv", "attention", "middle", "gate", "up"),
}
REMAT_POLICIES: dict[str, Callable[..., Any]] = {
    "none": jax.checkpoint_policies.save_anything_except_these_names("weight"),
} | {name: jax.checkpoint_policies.save_only_these_names(*saved) for name, saved in SAVED.items()}
"""What the backward pass finds saved of a decoder layer besides its input; the rest is computed again.

none: everything. full: nothing. attention: queries, keys, values and what they attend to, so that attention is not
computed again. gate: also the stream between the two halves and the gate's product (the up projection is computed
again). products: also the up projection's. Weights put together from their parts are never saved.
"""


def logical_axes(variables: nnx.State) -> Any:
    """The names of each parameter's axes, as a plain tree of tuples."""
    return nnx.to_pure_dict(nnx.map_state(lambda _, variable: variable.get_metadata("logical_axes"), variables))


def param(rngs: nnx.Rngs, init, shape: tuple[int, ...], axes: Axes, layers: int | None, dtype) -> nnx.Param:
    """A parameter with one logical axis name per dimension, stacked along a leading `layers` axis if asked."""
    if layers is not None:
        shape, axes = (layers, *shape), ("layers", *axes)
    return nnx.Param(init(rngs.params(), shape, dtype), logical_axes=axes)


def fan_in(layers: int | None):
    """Normal with variance 1 / fan-in, each layer of a stack by itself (LeCun et al., Efficient BackProp, 1998)."""
    stacked = () if layers is None else (0,)
    return nnx.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=stacked)


FEW_ROWS = 64
"""Rows of x up to which kernel · xᵀ is faster on a CPU than x · kernelᵀ (benchmarks/README.md)."""

normal = nnx.initializers.normal(0.5)
"""Embeddings start as large as the residual stream they feed."""

zeros = nnx.initializers.zeros_init()
ones = nnx.initializers.ones_init()


def matmul(
    x: Float[Array, "... I"], kernel: Array, *, output_major: bool = False, preferred_element_type=None
) -> Float[Array, "... O"]:
    """x · kernel, where kernel is [I, O], or [O, I] if output_major.

    The leading axes are flattened first: XLA:CPU otherwise transposes the activations for the kernel's gradient, which
    doubles a step's time.
    """
    flat = x.reshape(-1, x.shape[-1])
    if output_major and len(flat) <= FEW_ROWS:
        y = jnp.matmul(kernel, flat.T, preferred_element_type=preferred_element_type).T
    else:
        y = jnp.matmul(flat, kernel.T if output_major else kernel, preferred_element_type=preferred_element_type)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def whole(variable: nnx.Variable) -> Array:
    """A parameter's value, put together from the parts it is stored in; of a stack's layer in a scan, that layer's."""
    value = variable[...]
    return gather_param(value, variable.get_metadata("logical_axes")[-value.ndim :])


class Lora(nnx.Module):
    """scale · (x · a) · b, the adapter of a `Linear`; models/lora.py makes it. a [in, rank], b [rank, out]."""

    def __init__(self, a: nnx.Param, b: nnx.Param, scale: float):
        self.a, self.b, self.scale = a, b, scale

    def __call__(self, x: Float[Array, "... I"], preferred_element_type=None) -> Float[Array, "... O"]:
        narrow = matmul(x, whole(self.a).astype(x.dtype)) * self.scale
        return matmul(narrow, whole(self.b).astype(x.dtype), preferred_element_type=preferred_element_type)


class Linear(nnx.Module):
    """y = x · kernel + bias, kernel [in, out], or [out, in] after `store_output_major`; plus `lora`, where it has one.
    After `quantise` the kernel is int8, and y the product times `scale` [out].

    Where the inputs are split over shards ("heads", "mlp"), so are the kernel's rows, and the partial results are
    added up.
    """

    def __init__(self, rngs, shape: tuple[int, int], axes: Axes, *, bias: bool, layers=None, dtype=jnp.float32):
        self.kernel = param(rngs, fan_in(layers), shape, axes, layers, dtype)
        self.bias = param(rngs, zeros, shape[1:], axes[1:], layers, dtype) if bias else None
        self.input_axis, self.output_major = axes[0], False
        self.lora: Lora | None = nnx.data(None)
        self.scale: nnx.Param | None = nnx.data(None)

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        # The product is rounded once, after what follows it.
        wide = None if self.bias is None and self.scale is None else jnp.float32
        kernel = whole(self.kernel).astype(x.dtype)
        y = matmul(x, kernel, output_major=self.output_major, preferred_element_type=wide)
        if self.scale is not None:
            y = y * self.scale[...]
        if self.lora is not None:
            y = y + self.lora(x, preferred_element_type=wide)  # of split inputs a partial result, as y is
        y = sum_over(y, self.input_axis)
        return (y if self.bias is None else y + self.bias[...].astype(jnp.float32)).astype(x.dtype)

    def quantise(self) -> None:
        """Keeps the kernel as int8, every output with a scale of its own, the largest of its weights being 127."""
        import qwix

        kernel, axes = self.kernel[...], self._kernel_axes()
        inputs, out = (-1, -2) if self.output_major else (-2, -1)
        each = [axis for axis in range(kernel.ndim) if axis != kernel.ndim + inputs]
        quantised = qwix.quantize(kernel, jnp.int8, channelwise_axes=each, scale_dtype=jnp.float32)
        self.kernel = nnx.Param(quantised.qvalue, logical_axes=axes)
        self.scale = nnx.Param(quantised.scale.squeeze(inputs), logical_axes=(*axes[:-2], axes[out]))

    def store_output_major(self) -> None:
        """Stores the kernel as [out, in], in which XLA:CPU reads it fastest when x has few rows."""
        self.kernel = nnx.Param(self.kernel[...].T, logical_axes=self._kernel_axes()[::-1])
        self.output_major = True

    def _kernel_axes(self) -> Axes:
        return self.kernel.get_metadata("logical_axes")[-self.kernel.ndim :]  # a layer of a stack has no axis of layers


class Conv(nnx.Module):
    """One-dimensional convolution over time, width 3, padding 1; kernel [3, in, out].

    Written as one matrix product over the three taps laid side by side: the same arithmetic, and a product is
    what every backend (and its backward pass) does best.
    """

    def __init__(self, rngs, shape: tuple[int, int], axes: Axes, *, stride: int, dtype=jnp.float32):
        self.kernel = param(rngs, fan_in(None), (3, *shape), (None, *axes), None, dtype)
        self.bias = param(rngs, zeros, shape[1:], axes[1:], None, dtype)
        self.stride = stride

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B U O"]:
        steps = (x.shape[1] - 1) // self.stride + 1
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        taps = [padded[:, i : i + self.stride * (steps - 1) + 1 : self.stride] for i in range(3)]
        kernel = whole(self.kernel)
        return matmul(jnp.concatenate(taps, axis=-1), kernel.reshape(-1, kernel.shape[-1])) + self.bias[...]


class LayerNorm(nnx.Module):
    """Layer normalisation with scale and bias, computed in float32, eps 1e-5 (MODEL.md §2)."""

    def __init__(self, rngs, size: int, *, layers=None, dtype=jnp.float32):
        self.scale = param(rngs, ones, (size,), ("audio_embed",), layers, dtype)
        self.bias = param(rngs, zeros, (size,), ("audio_embed",), layers, dtype)

    def __call__(self, x: Float[Array, "... S"]) -> Float[Array, "... S"]:
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-5)
        return (wide * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) · scale, the normalisation in float32 (Zhang and Sennrich, arXiv:1910.07467)."""

    def __init__(self, rngs, size: int, eps: float, *, layers=None, dtype=jnp.float32):
        self.scale = param(rngs, ones, (size,), ("embed",), layers, dtype)
        self.eps = eps

    def __call__(self, x: Float[Array, "... S"]) -> Float[Array, "... S"]:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * self.scale[...]


def rope_frequencies(config: DecoderConfig) -> tuple[np.ndarray, float]:
    """Rotary inverse frequencies [head_dim / 2] (radians per position) and the factor on cos and sin.

    YaRN is arXiv:2309.00071, equations 23 to 25, with the attention factor of its section 3.4.
    """
    dim, base, scaling = config.head_dim, config.rope_theta, config.rope_scaling
    inverse = base ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    if scaling is None:
        return inverse, 1.0
    if scaling.rope_type == "linear":
        return inverse / scaling.factor, 1.0

    trained = scaling.original_max_position_embeddings or config.max_position_embeddings

    def dimension_turning(turns: float) -> float:
        """The (fractional) frequency index that makes this many full turns over the trained length."""
        return dim * np.log(trained / (turns * 2 * np.pi)) / (2 * np.log(base))

    low, high = dimension_turning(scaling.beta_fast), dimension_turning(scaling.beta_slow)
    if scaling.truncate:
        low, high = np.floor(low), np.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0, 1)
    inverse = inverse / scaling.factor * ramp + inverse * (1 - ramp)

    def magnitude(mscale: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * mscale * float(np.log(scaling.factor)) + 1.0

    if scaling.attention_factor is not None:
        return inverse, scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return inverse, magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return inverse, magnitude(1.0)


def rope_tables(config: DecoderConfig, positions: Int[AnyArray, "B T"]) -> tuple[Array, Array]:
    """cos and sin, each float32 [B, T, 1, head_dim / 2], for `apply_rope`."""
    inverse, factor = rope_frequencies(config)
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(inverse, jnp.float32)
    return jnp.cos(angles)[:, :, None] * factor, jnp.sin(angles)[:, :, None] * factor


def apply_rope(x: Float[Array, "B T H D"], cos: Array, sin: Array) -> Float[Array, "B T H D"]:
    """Rotates the pairs (i, i + D/2), Qwen2's convention, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def run_layers(layers: nnx.Module | nnx.List, step: Callable, x: Any, *per_layer: Any, remat: str = "none"):
    """Applies a stack: `x, out = step(layer, x, *slices)` for each layer, `per_layer` being sliced beside it.

    x may be a tree.

    Args:
      layers: a stacked module (scanned), or a list of separate ones (`unstack`), run one after another; then
        `per_layer` holds one entry per layer in lists, and the outs come back as a list.
      remat: a name in REMAT_POLICIES.

    Returns:
      The last x and the outs, stacked along the layer axis (a list for separate layers).
    """
    if remat not in REMAT_POLICIES:
        raise ConfigError(f'remat: expected one of {", ".join(REMAT_POLICIES)}, found "{remat}"')
    if isinstance(layers, nnx.List):
        outs = []
        for layer, *slices in zip(layers, *per_layer, strict=True):
            x, out = step(layer, x, *slices)
            outs.append(out)
        return x, outs

    graphdef, state = nnx.split(layers)

    def body(x, scanned):
        layer_state, slices = scanned
        return step(nnx.merge(graphdef, layer_state), x, *slices)

    if remat != "none" or current() is not None:
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(body, x, (state, per_layer))


def unstack(layers: nnx.Module) -> nnx.List:
    """Separate modules, one per layer, from a stacked one. Each layer's arrays are copies of their own."""
    graphdef, state = nnx.split(layers)
    depth = jax.tree.leaves(state)[0].shape[0]
    return nnx.List([nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], state)) for i in range(depth)])
