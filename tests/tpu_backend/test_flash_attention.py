"""The attention kernels through the real TPU compiler, for every chip we name, at the lengths we promise."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from stepaudio_jax.kernels import flash_attention, paged_attention, ring_attention

pytestmark = pytest.mark.tpu_backend

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
RINGS = {"v4": "v4:2x4x4", "v5e": "v5e:4x8", "v5p": "v5p:2x4x4", "v6e": "v6e:4x8"}


def devices(topology: str):
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def one_chip(name: str) -> Mesh:
    return Mesh(np.array(devices(TOPOLOGIES[name])[:1]), ("data",), axis_types=(AxisType.Auto,))


def compiled(mesh, fn, *shapes, spec=(), dtypes=()):
    place = NamedSharding(mesh, PartitionSpec(*spec))
    args = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=place)
        for shape, dtype in zip(shapes, dtypes or [jnp.bfloat16] * len(shapes), strict=True)
    ]
    with jax.set_mesh(mesh):  # from which the kernels, and their sizes for this chip, are chosen
        return jax.jit(fn).lower(*args).compile()


def gradients(attend):
    return jax.grad(lambda q, k, v, *rest: attend(q, k, v, *rest).astype(jnp.float32).sum(), argnums=(0, 1, 2))


@pytest.mark.parametrize("chip", TOPOLOGIES)
@pytest.mark.parametrize("length", [1500, 10_240, 65_536, 131_072])
def test_forward_and_backward_at_every_length(chip, length):
    """The decoder's shape, causal, one key head with its five query heads; at 1,500 the encoder's, bidirectional."""
    heads, kv_heads, dim, causal = (20, 20, 64, False) if length == 1500 else (5, 1, 128, True)
    q, k = (1, length, heads, dim), (1, length, kv_heads, dim)
    program = compiled(one_chip(chip), gradients(functools.partial(flash_attention, causal=causal)), q, k, k)
    text = program.as_text()
    assert "flash_attention_forward" in text and "flash_attention_backward" in text
    # Linear in length: some 20 numbers of 4 bytes for each query's and each key's.
    assert program.memory_analysis().temp_size_in_bytes < 80 * length * (heads + kv_heads) * max(dim, 128)


@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_packed_rows(chip):
    def attend(q, k, v, ids):
        return flash_attention(q, k, v, causal=True, q_segment_ids=ids, kv_segment_ids=ids)

    shapes = (2, 10_240, 5, 128), (2, 10_240, 1, 128), (2, 10_240, 1, 128), (2, 10_240)
    compiled(one_chip(chip), gradients(attend), *shapes, dtypes=[jnp.bfloat16] * 3 + [jnp.int32])


@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_paged_attention(chip):
    """32 rows of up to 10,240 tokens that decode, on one of eight chips of tensor parallelism: the library's kernel."""
    shapes = (32, 1, 5, 128), (2048, 128, 2, 128), (32,), (32,), (32, 80)
    program = compiled(one_chip(chip), paged_attention, *shapes, dtypes=[jnp.bfloat16] * 2 + [jnp.int32] * 3)
    assert "tpu_custom_call" in program.as_text()


def test_float32():
    compiled(
        one_chip("v5e"), gradients(functools.partial(flash_attention, causal=True)), *[(1, 1000, 2, 64)] * 3,
        dtypes=[jnp.float32] * 3,
    )  # fmt: skip


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_a_ring_of_32_chips_holds_262144_tokens(chip):
    mesh = Mesh(np.array(devices(RINGS[chip])), ("context",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec(None, "context")

    def attend(q, k, v, ids):
        one_shard = functools.partial(ring_attention, axis_name="context", causal=True)
        ring = jax.shard_map(
            lambda q, k, v, ids: one_shard(q, k, v, segment_ids=ids), in_specs=spec, out_specs=spec, check_vma=True
        )
        return ring(q, k, v, ids)

    q, k = (1, 262_144, 5, 128), (1, 262_144, 1, 128)
    program = compiled(mesh, gradients(attend), q, k, k, q[:2], spec=spec, dtypes=[jnp.bfloat16] * 3 + [jnp.int32])
    text = program.as_text()
    assert "flash_attention_forward" in text and "flash_attention_backward" in text
    if chip != "v5e":  # for which this compiler makes no permute asynchronous
        assert "collective-permute-start" in text  # in flight beside the kernels, not between them
    assert "all-gather" not in text
    assert program.memory_analysis().temp_size_in_bytes < 2**30
