"""Tile sizes: what is fitted to lengths, what memory allows, what is refused."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from stepaudio_jax.kernels import flash_attention
from stepaudio_jax.kernels.block_sizes import DENSE, PACKED, BlockSizes, for_chip


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([1, 2, 5, 7, 8]))
def test_tiles_are_even_and_cover(q_len, kv_len, group):
    sizes = BlockSizes().fit(q_len, kv_len, group)
    for length, tile in ((q_len, sizes.block_q), (kv_len, sizes.block_kv), (kv_len, sizes.block_kv_backward)):
        assert tile % 128 == 0
        count = -(-length // tile)
        assert count * tile - length < 128 * count  # padding is less than 128 a tile
    assert sizes.block_kv_load % sizes.block_kv == 0
    assert sizes.fit(q_len, kv_len, 1).block_kv == sizes.block_kv


def test_the_encoders_window_is_two_tiles():
    assert BlockSizes(block_q=1024).fit(1500, 1500, 1).block_q == 768


def test_a_group_shares_a_tile():
    sizes = BlockSizes(block_q=1024)
    assert [sizes.fit(10_240, 10_240, group).block_q for group in (1, 2, 5, 8)] == [1024, 512, 256, 128]


def test_spans_are_even_and_fit():
    sizes = BlockSizes(vmem_limit=60 * 2**20).fit(10_240, 10_240, 5)
    tiles = sizes.backward_span(10_240, 5, 128, 2)
    total = 10_240 // sizes.block_q_backward
    assert 1 <= tiles < total and -(-total // tiles) == round(total / tiles + 0.49)
    with pytest.raises(ValueError, match="block_q_backward and block_kv_backward: expected to fit into 1 MiB"):
        BlockSizes(vmem_limit=2**20).fit(10_240, 10_240, 5).backward_span(10_240, 5, 128, 2)


def test_sizes_beyond_vmem_are_refused():
    q = jax.ShapeDtypeStruct((1, 10_240, 5, 128), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, 10_240, 1, 128), jnp.bfloat16)
    sizes = BlockSizes(block_q=4096, block_kv=2048, vmem_limit=56 * 2**20)
    with pytest.raises(ValueError, match=r"block_q, block_kv .* into 56 MiB of VMEM.* to need 1\d\d MiB"):
        call = {"causal": True, "implementation": "pallas_tpu", "block_sizes": sizes}
        jax.eval_shape(lambda q, k: flash_attention(q, k, k, **call), q, k)


def test_sizes_that_are_no_multiples_are_refused():
    with pytest.raises(ValueError, match="block_q: expected a positive multiple of 128, found 100"):
        BlockSizes(block_q=100)
    with pytest.raises(ValueError, match="block_kv_load: expected a positive multiple of 512, found 1280"):
        BlockSizes(block_kv=512, block_kv_load=1280)


def test_the_mesh_in_use_names_the_chip():
    def on(kind):
        return AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=AbstractDevice(kind, 1, "tpu"))

    with jax.sharding.use_abstract_mesh(on("TPU v5p")):
        dense, packed = for_chip(64, packed=False), for_chip(128, packed=True)
    assert (dense.block_q, dense.block_kv) == DENSE["v5p", 64].forward
    assert (packed.block_q_backward, packed.block_kv_backward) == PACKED["v5p", 128].backward
    assert dense.vmem_limit < 64 * 2**20
    with jax.sharding.use_abstract_mesh(on("TPU7x")):  # not in the table
        assert for_chip(128, packed=False).block_q == DENSE["v4", 128].forward[0]
