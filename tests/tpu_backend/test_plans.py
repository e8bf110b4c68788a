"""Three plans of `make plans`, by the real TPU compiler: 33B SFT on a v5p pod, decode on v6e, a ring prefill.

They fit with room to spare, compute no more than the policy says, and move nothing but what the strategy needs.
"""

import pytest

from stepaudio_jax.parallel.chips import parse_topology
from stepaudio_jax.plan import plan_config
from stepaudio_jax.plan.search import with_settings
from stepaudio_jax.training import read_config

pytestmark = pytest.mark.tpu_backend


def plan(name: str, topology: str, program: str, **settings):
    config = with_settings(read_config(f"configs/{name}.py"), settings)
    (found,) = plan_config(config, parse_topology(topology), only=program)
    print(f"peak {found.peak / 2**30:.2f} GiB, recompute {found.recompute:.3f}, {found.compile_seconds:.0f} s")
    assert found.fits and found.compile_seconds < 180
    return found


def test_sft_of_the_33b_on_64_chips_of_v5p():
    """64 rows of 10,240 tokens: most of it saved, weights gathered and gradients scattered, never all-reduced."""
    settings = {"data.batch_size": 64, "microbatches": 1}
    found = plan("sft_33b", "v5p:4x4x4", "train step", **settings)
    assert found.recompute <= 1.12
    layers = {kind for kind in found.in_loops if kind.endswith("loop of 64")}
    assert layers == {"all-gather over fsdp, loop of 64", "reduce-scatter over fsdp, loop of 64"}
    weights = 2 * 31.2e9  # of the layers, in bfloat16
    assert found.collectives["all-gather over fsdp"] <= 2.15 * weights  # forward and backward; head, encoder
    assert found.collectives["reduce-scatter over fsdp"] <= 1.05 * weights
    assert found.groups["parameters"] + found.groups["optimizer state"] < 6 * 2**30
    assert found.activations > 0.8 * found.peak - 8 * 2**30 and found.binds == "arithmetic"


def test_decode_of_the_33b_on_eight_chips_of_v6e():
    """Each step reads the weights and the cache once, and moves only activations."""
    found = plan("serve_33b", "v6e:2x4", "decode")
    once = found.groups["parameters"] + found.groups["KV cache"]
    assert found.floors["memory"] <= 1.06 * once / 1640e9 and found.binds == "memory"
    assert set(found.in_loops) <= {
        "all-reduce over tensor, loop of 64",
        "all-reduce over tensor, loop of 1",
        "all-gather over tensor, loop of 1",
    }


def test_a_prompt_of_135168_tokens_by_pieces_on_eight_chips_of_v5p():
    found = plan("serve_33b", "v5p:2x2x2", "prefill", batch_size=1, cache_length=135_168)
    assert set(found.in_loops) <= {"all-reduce over tensor, loop of 64", "all-gather over tensor, loop of 1"}
    assert found.groups["KV cache"] == pytest.approx(2 * 2 * 64 * 8 * 128 * 135_168 / 8, rel=0.01)
    assert found.fits
