"""Ring attention over fake devices against plain attention over the whole sequence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from stepaudio_jax.kernels import ring_attention, stripe, unstripe
from stepaudio_jax.kernels.block_sizes import BlockSizes
from stepaudio_jax.kernels.reference import reference_attention

KERNELS = {"block_sizes": BlockSizes(128, 128, 128, 128, 128), "interpret": True}


def ring(shards, causal, implementation, ids, q, k, v):
    mesh = jax.make_mesh((shards,), ("context",), axis_types=(AxisType.Auto,), devices=jax.devices()[:shards])
    spec = PartitionSpec(None, "context")
    options = {"causal": causal, "implementation": implementation} | (KERNELS if implementation == "pallas_tpu" else {})
    attend = functools.partial(ring_attention, axis_name="context", **options)
    # The interpreter cannot yet follow which values vary over the mesh; compiled kernels can (tests/tpu_backend).
    sharded = functools.partial(
        jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=implementation == "xla"
    )
    arrays = [stripe(x, shards) for x in (q, k, v)]
    if ids is None:
        return unstripe(sharded(attend)(*arrays), shards)
    with_ids = sharded(lambda q, k, v, ids: attend(q, k, v, segment_ids=ids))
    return unstripe(with_ids(*arrays, stripe(jnp.asarray(ids), shards)), shards)


@pytest.mark.parametrize("implementation", ["xla", "pallas_tpu"])
@pytest.mark.parametrize(("shards", "causal", "packed"), [(4, True, True), (8, True, False), (2, False, True)])
def test_a_ring_is_the_whole(implementation, shards, causal, packed):
    rng = np.random.default_rng(shards)
    length = 8 * 41
    q, k, v, do = (rng.standard_normal((2, length, heads, 64), np.float32) for heads in (4, 2, 2, 4))
    runs = [90, 1, 37, 150, 50], [300, 2, 0, 3, 23]
    ids = np.stack([np.repeat([4, 1, 0, 2, 0], run) for run in runs]) if packed else None
    out, pull = jax.vjp(jax.jit(functools.partial(ring, shards, causal, implementation, ids)), q, k, v)
    whole = functools.partial(reference_attention, causal=causal, q_segment_ids=ids, kv_segment_ids=ids)
    true_out, true_pull = jax.vjp(lambda q, k, v: whole(q, k, v)[0], q, k, v)
    for name, a, b in zip(("out", "dq", "dk", "dv"), (out, *pull(do)), (true_out, *true_pull(do)), strict=True):
        assert np.linalg.norm(a - b) <= 2e-6 * np.linalg.norm(b), name


def test_bfloat16_partial_outputs_are_not_rounded():
    """Merged over eight shards, the error is that of one call, not of eight roundings."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((1, 256, 2, 64)), jnp.bfloat16) for _ in range(3))
    truth, _ = reference_attention(q, k, v, causal=True)
    errors = [np.linalg.norm(np.asarray(ring(n, True, "xla", None, q, k, v), np.float32) - truth) for n in (1, 8)]
    assert errors[1] <= 1.1 * errors[0]


def test_stripes():
    x = np.arange(12).reshape(1, 12)
    np.testing.assert_array_equal(stripe(x, 3), [[0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]])
    np.testing.assert_array_equal(unstripe(stripe(x, 3), 3), x)
    with pytest.raises(ValueError, match="expected a length that 5 shards divide, found 12"):
        stripe(x, 5)
