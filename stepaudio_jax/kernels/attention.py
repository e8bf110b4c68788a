"""The one call through which encoder, decoder, training and prefill attend.

Shapes: B batch, Q query length, K key length, H query heads, N key/value heads (H = N · G), D head_dim.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from stepaudio_jax.kernels import blockwise, flash_tpu, flash_tpu_backward
from stepaudio_jax.kernels.block_sizes import BlockSizes, for_chip
from stepaudio_jax.kernels.platform import platform
from stepaudio_jax.kernels.visibility import Visible, visible_keys

log = logging.getLogger(__name__)

Implementation = Literal["pallas_tpu", "xla", "cudnn"]

TPU_HEAD_DIMS = (64, 128)
TPU_TYPES = (jnp.bfloat16, jnp.float32)


def flash_attention(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K N D"],
    v: Float[Array, "B K N D"],
    *,
    causal: bool,
    q_segment_ids: Int[Array | np.ndarray, "B Q"] | None = None,
    kv_segment_ids: Int[Array | np.ndarray, "B K"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
    q_offset: Int[Array, ...] | int | None = None,
    kv_offset: Int[Array, ...] | int | None = None,
    position_stride: int = 1,
    return_lse: bool = False,
    longest_segment: int | None = None,
    block_sizes: BlockSizes | None = None,
    interpret: Any = False,
) -> Any:
    """softmax(q · kᵀ · scale) · v, [B, Q, H, D], in memory linear in the lengths, forward and backward.

    Query i sees key j if their segment ids agree and are not 0, and, when causal,
    q_offset + i · position_stride ≥ kv_offset + j · position_stride. A query that sees nothing gives 0 and passes no
    gradient. Softmax and sums are float32; float32 inputs are multiplied at full precision. Differentiable in q, k, v.

    Args:
      q_segment_ids, kv_segment_ids: packing and padding. An id is one contiguous run in its row (checked where the
        values are known when this is called, trusted under a trace), and 0 is padding: it attends nothing and is
        attended by nothing. Give the same array twice for self-attention: finding each query's keys is cheaper then.
      scale: defaults to D^−0.5.
      implementation: "pallas_tpu", "xla" (blockwise, everywhere) or "cudnn" (where it can express the call, else
        "xla"); by default what suits the platform: that of the mesh in use (`jax.set_mesh`), else of the process.
      q_offset, kv_offset: positions of the first query and the first key, scalars or [B]; 0 by default (top-left).
      position_stride: distance between neighbours' positions, for chunks dealt out in stripes.
      return_lse: also return the float32 log-sum-exp of the scaled scores, [B, Q, H], −inf where nothing is seen.
      longest_segment: where the caller knows it, so that the compiler's estimate of the cost is right; the result does
        not depend on it.
      block_sizes: the TPU kernels' tile sizes instead of the table's.
      interpret: run the TPU kernels without a TPU: True, or `pltpu.InterpretParams` to check for races.

    Raises:
      ValueError: shapes that do not fit together, heads that do not divide, segment ids on one side only or of the
        wrong shape or not contiguous, a head_dim or type the TPU kernels lack when they are asked for by name.
    """
    plain = q_segment_ids is None and q_offset is None and kv_offset is None and not return_lse
    settings = settle(
        q,
        k,
        v,
        q_segment_ids,
        kv_segment_ids,
        scale=scale,
        implementation=implementation,
        plain=plain,
        causal=causal and q_offset is None and kv_offset is None,
        longest_segment=longest_segment,
        block_sizes=block_sizes,
        interpret=interpret,
    )
    for name, offset in (("q_offset", q_offset), ("kv_offset", kv_offset)):
        if offset is not None and jnp.shape(offset) not in ((), q.shape[:1]):
            raise ValueError(f"{name}: expected a scalar or shape {q.shape[:1]}, found {jnp.shape(offset)}")
    if not isinstance(position_stride, int) or position_stride < 1:
        raise ValueError(f"position_stride: expected a positive int, found {position_stride!r}")
    if settings.implementation == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, scale=settings.scale, is_causal=causal, implementation="cudnn")

    visible = visible_keys(
        q.shape[0],
        q.shape[1],
        k.shape[1],
        causal=causal,
        q_segment_ids=q_segment_ids,
        kv_segment_ids=kv_segment_ids,
        q_offset=q_offset,
        kv_offset=kv_offset,
        position_stride=position_stride,
    )
    out: Any = _attend(q, k, v, visible, settings)
    return out if return_lse else out[0]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a call is computed: everything about it that is no array.

    Attributes:
      causal, longest_segment: whether a row that is one segment visits half of its tiles only, and how long a segment
        may be; for the compiler's estimate of the cost.
    """

    scale: float
    causal: bool
    longest_segment: int | None
    implementation: Implementation
    block_sizes: BlockSizes | None
    interpret: Any

    def for_tpu(self) -> dict[str, Any]:
        """As the TPU kernels take them."""
        names = ("scale", "causal", "longest_segment", "interpret")
        return {"sizes": self.block_sizes} | {name: getattr(self, name) for name in names}


def forward(q, k, v, visible: Visible, settings: Settings, out_dtype=None) -> tuple[Array, Array]:
    """Output and log-sum-exp, by the TPU kernels or in plain JAX."""
    if settings.implementation == "xla":
        return blockwise.forward(q, k, v, visible, scale=settings.scale, out_dtype=out_dtype)
    options: dict[str, Any] = settings.for_tpu() | {"out_dtype": out_dtype}
    return flash_tpu.forward(q, k, v, visible, **options)


def backward(q, k, v, do, lse, delta, visible: Visible, settings: Settings, grad_dtype=None):
    """dq, dk and dv, likewise; delta = Σ do · out over head_dim, less the gradient of lse."""
    arrays = q, k, v, do, lse, delta, visible
    if settings.implementation == "xla":
        return blockwise.backward(*arrays, scale=settings.scale, grad_dtype=grad_dtype)
    options: dict[str, Any] = settings.for_tpu() | {"grad_dtype": grad_dtype}
    return flash_tpu_backward.backward(*arrays, **options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, visible: Visible, settings: Settings) -> Any:
    return forward(q, k, v, visible, settings)


def _attend_forward(q, k, v, visible, settings):
    # Saved in float32: do · out is to cancel against do · v, for which bfloat16 is too coarse where few keys are seen.
    # Named for rematerialisation policies, which may keep it and so spare the forward pass a second run.
    out, lse = checkpoint_name(forward(q, k, v, visible, settings, jnp.float32), "attention")
    return (out.astype(q.dtype), lse), (q, k, v, visible, out, lse)


def _attend_backward(settings, saved, gradients):
    q, k, v, visible, out, lse = saved
    do, dlse = gradients
    # The gradient of a score is p · (do · v − Σ p (do · v) + dlse), whose sum is do · out.
    delta = jnp.einsum("bqhd,bqhd->bqh", do, out, preferred_element_type=jnp.float32) - dlse
    return *backward(q, k, v, do, lse, delta, visible, settings), None


_attend.defvjp(_attend_forward, _attend_backward)


@functools.cache
def _say_once(message: str) -> None:
    log.warning(message)


def settle(
    q,
    k,
    v,
    q_segment_ids,
    kv_segment_ids,
    *,
    scale: float | None,
    implementation: Implementation | None,
    plain: bool,
    causal: bool,
    longest_segment: int | None = None,
    block_sizes: BlockSizes | None = None,
    interpret: Any = False,
) -> Settings:
    """Checks the arrays and settles on an implementation; `plain`: no segment ids, no offsets, no log-sum-exp."""
    _check(q, k, v, q_segment_ids, kv_segment_ids)
    chosen = _choose(implementation, q, k, plain=plain)
    if chosen == "pallas_tpu" and block_sizes is None:
        block_sizes = for_chip(q.shape[3], packed=q_segment_ids is not None)
    scale = float(q.shape[3] ** -0.5 if scale is None else scale)
    return Settings(scale, causal, longest_segment, chosen, block_sizes, interpret)


def _choose(asked: Implementation | None, q, k, *, plain: bool) -> Implementation:
    dim, dtype = q.shape[3], q.dtype
    if asked not in (None, "pallas_tpu", "xla", "cudnn"):
        raise ValueError(f'implementation: expected "pallas_tpu", "xla", "cudnn" or None, found {asked!r}')
    if asked == "pallas_tpu" and dim not in TPU_HEAD_DIMS:
        raise ValueError(f"head_dim: the TPU kernels expect one of {TPU_HEAD_DIMS}, found {dim}")
    if asked == "pallas_tpu" and dtype not in TPU_TYPES:
        raise ValueError(f"q: the TPU kernels expect bfloat16 or float32, found {dtype}")
    by_platform: dict[str, Implementation] = {"tpu": "pallas_tpu", "gpu": "cudnn"}
    chosen: Implementation = asked or by_platform.get(platform(), "xla")
    if chosen == "pallas_tpu" and not (dim in TPU_HEAD_DIMS and dtype in TPU_TYPES):
        _say_once(f"attention by XLA: the TPU kernels have no head_dim {dim} in {dtype}")
        return "xla"
    known_to_cudnn = q.shape[1] == k.shape[1] and dim % 8 == 0 and dim <= 128 and dtype in (jnp.bfloat16, jnp.float16)
    if chosen == "cudnn" and not (plain and known_to_cudnn):
        _say_once("attention by XLA: cuDNN cannot express segment ids, offsets, a log-sum-exp, or this type and shape")
        return "xla"
    return chosen


def check_segment_ids(name: str, ids: np.ndarray) -> None:
    """Refuses segment ids [B, L] of which one comes back after another id has begun.

    Raises:
      ValueError: naming the row, the id and where it comes back.
    """
    for row, values in enumerate(np.asarray(ids)):
        starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
        runs = values[starts]
        _, first = np.unique(runs, return_index=True)
        again = np.setdiff1d(np.flatnonzero(runs), first)
        if again.size:
            raise ValueError(
                f"{name}: expected one contiguous run of each id, found id {runs[again[0]]} of row {row} "
                f"beginning again at {starts[again[0]]}"
            )


def _check(q, k, v, q_segment_ids, kv_segment_ids):
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4 or 0 in x.shape:
            raise ValueError(f"{name}: expected [batch, length, heads, head_dim], none of them 0, found {x.shape}")
    if k.shape != v.shape:
        raise ValueError(f"k and v: expected one shape, found {k.shape} and {v.shape}")
    if q.shape[0] != k.shape[0]:
        raise ValueError(f"q and k: expected the same batch, found {q.shape[0]} and {k.shape[0]}")
    if q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k: expected the same head_dim, found {q.shape[3]} and {k.shape[3]}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"heads: expected a multiple of {k.shape[2]} key/value heads, found {q.shape[2]}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v: expected one type, found {q.dtype}, {k.dtype} and {v.dtype}")
    if (q_segment_ids is None) != (kv_segment_ids is None):
        found = "kv_segment_ids" if q_segment_ids is None else "q_segment_ids"
        raise ValueError(f"q_segment_ids and kv_segment_ids: give both or neither, found {found} alone")
    for name, ids, like in (("q_segment_ids", q_segment_ids, q), ("kv_segment_ids", kv_segment_ids, k)):
        if ids is None:
            continue
        if not isinstance(ids, jax.Array | np.ndarray):
            raise ValueError(f"{name}: expected an array of shape {like.shape[:2]}, found a {type(ids).__name__}")
        if ids.shape != like.shape[:2]:
            raise ValueError(f"{name}: expected shape {like.shape[:2]}, found {ids.shape}")
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"{name}: expected integers, found {ids.dtype}")
        if not isinstance(ids, Tracer):
            check_segment_ids(name, np.asarray(ids))
