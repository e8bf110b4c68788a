"""What is read from compiled programs: against closed forms, brute force, and collectives of known sizes."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.plan.hlo import Hlo, Instruction, array_bytes, parse
from stepaudio_jax.plan.hlo_collectives import collectives, first_group
from stepaudio_jax.plan.hlo_costs import convolution_flops, flops, kernels, memory_traffic, product_flops


def test_products_in_nested_loops_are_counted_as_often_as_they_run():
    def f(w, x):
        def layer(x, w):
            return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w), x), None

        return jax.lax.scan(layer, x, w)[0]

    w, x = jnp.zeros((7, 64, 64)), jnp.zeros((32, 64))
    assert product_flops(Hlo(jax.jit(f).lower(w, x).compile().as_text())) == 7 * 3 * 2 * 32 * 64 * 64


def test_a_gradient_counts_three_products():
    w, x = jnp.zeros((48, 80)), jnp.zeros((16, 48))
    grad = jax.jit(jax.grad(lambda w, x: jnp.square(x @ w).sum(), argnums=(0, 1)))
    assert product_flops(Hlo(grad.lower(w, x).compile().as_text())) == 3 * 2 * 16 * 48 * 80


def brute_force(lhs: int, size: int, stride: int, low: int, high: int, lhs_dilate: int, rhs_dilate: int):
    """Outputs along one dimension, and taps that do not fall into padding."""
    extent = (lhs - 1) * lhs_dilate + 1
    outputs = (extent + low + high - ((size - 1) * rhs_dilate + 1)) // stride + 1
    taps = 0
    for out, tap in itertools.product(range(outputs), range(size)):
        at = out * stride - low + tap * rhs_dilate
        taps += 0 <= at < extent and at % lhs_dilate == 0
    return outputs, taps


@pytest.mark.parametrize("seed", range(20))
def test_convolutions_with_padding_and_dilation(seed):
    rng = np.random.default_rng(seed)
    dims = []
    for _ in range(2):
        size, rhs_dilate = int(rng.integers(1, 5)), int(rng.integers(1, 3))
        dims.append((int(rng.integers(9, 20)), size, int(rng.integers(1, 3)), int(rng.integers(0, 4)),
                     int(rng.integers(0, 4)), int(rng.integers(1, 3)), rhs_dilate))  # fmt: skip
    outs, taps = zip(*(brute_force(*dim) for dim in dims), strict=True)
    columns = list(zip(*dims, strict=True))
    fields = {"size": columns[1], "stride": columns[2], "lhs_dilate": columns[5], "rhs_dilate": columns[6]}
    window = " ".join(f"{name}={'x'.join(map(str, values))}" for name, values in fields.items())
    window += " pad=" + "x".join(f"{low}_{high}" for low, high in zip(columns[3], columns[4], strict=True))
    types = {"a": f"f32[{columns[0][0]},3,5,{columns[0][1]}]", "b": f"f32[{columns[1][0]},7,5,{columns[1][1]}]"}
    line = f"  %c = f32[{outs[0]},3,{outs[1]},7] convolution(%a, %b), window={{{window}}}, dim_labels=0bf1_0oi1->0b1f"
    found = parse(line)
    assert found is not None
    assert convolution_flops(found, types) == 2 * 3 * 7 * 5 * math.prod(taps)


def test_a_product_per_head_written_as_a_convolution():
    """What the TPU compiler makes of [C, H·D] · [H·D, …]: a window over the heads, all but one tap of it padding."""
    types = {"a": "bf16[32,1251,1280]", "b": "bf16[20,64,1280]"}
    window = "window={size=20 pad=19_19 rhs_reversal=1}"
    found = parse(f"  %c = bf16[32,1270,64] convolution(%a, %b), {window}, dim_labels=b0f_0oi->b0f")
    assert found is not None
    taps = brute_force(1251, 20, 1, 19, 19, 1, 1)[1]
    assert convolution_flops(found, types) == 2 * 32 * 64 * 1280 * taps


def test_collectives_their_bytes_axes_and_times():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    spec = PartitionSpec("fsdp", "tensor")

    def f(w, x):
        def layer(x, w):
            full = jax.lax.all_gather(w, "fsdp", axis=0, tiled=True)
            x = jax.lax.psum(x @ full, "tensor") + jax.lax.ppermute(x, "tensor", [(0, 1), (1, 0)])
            return jnp.tanh(x), jax.lax.psum_scatter(full * x.sum(), "fsdp", scatter_dimension=0, tiled=True)

        return jax.lax.scan(layer, x, w)

    sharded = jax.shard_map(
        f,
        mesh=mesh,
        in_specs=(PartitionSpec(None, *spec), PartitionSpec()),
        out_specs=(PartitionSpec(), PartitionSpec(None, *spec)),
        check_vma=False,
    )
    args = jnp.zeros((5, 64, 128)), jnp.zeros((8, 64))
    found = collectives(Hlo(jax.jit(sharded).lower(*args).compile().as_text()), mesh.shape)
    by_kind = {one.kind: one for one in found}
    assert {one.times for one in found} == {5} and {one.loop for one in found} == {5}
    gathered = 64 * 64 * 4
    assert (by_kind["all-gather"].axes, by_kind["all-gather"].bytes) == (("fsdp",), gathered * 3 / 4)
    assert (by_kind["reduce-scatter"].axes, by_kind["reduce-scatter"].bytes) == (("fsdp",), gathered * 3 / 4)
    x = 8 * 64 * 4
    assert (by_kind["all-reduce"].axes, by_kind["all-reduce"].bytes) == (("tensor",), 2 * x / 2)
    assert (by_kind["collective-permute"].axes, by_kind["collective-permute"].bytes) == (("tensor",), x)


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", [0, 2]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", [0, 2, 4, 6]),
        ("source_target_pairs={{3,5},{5,3}}", [3, 5]),
        ("no groups", []),
    ],
)
def test_the_notations_of_groups(text, group):
    assert first_group(text) == group


def test_kernels_count_what_they_state():
    text = """ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %flash_attention_forward.3 = f32[8]{0} custom-call(%p), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"cost_estimate":{"flops":"40","transcendentals":"1"}}}
  ROOT %flash_attention_forward.4 = f32[8]{0} custom-call(%p), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"cost_estimate":{"flops":"2"}}}
}"""
    assert kernels(Hlo(text)) == {"flash_attention_forward": (2, 42.0)} and flops(Hlo(text)) == 42


def test_one_that_runs_beside_several_fusions_is_one():
    """Written into each fusion that it overlaps with, under one chain."""
    gather = 'all-gather(%p), replica_groups={{0,1}}, dimensions={0}, frontend_attributes={chain_id="3"}'
    text = f"""%first (p: f32[4]) -> f32[8] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %g = f32[8]{{0}} {gather}
}}
%second (p: f32[4]) -> f32[8] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %h = f32[8]{{0:S(1)}} {gather}
}}
ENTRY %main (p: f32[4]) -> f32[8] {{
  %p = f32[4]{{0}} parameter(0)
  %a = f32[8]{{0}} fusion(%p), kind=kLoop, calls=%first
  ROOT %b = f32[8]{{0}} fusion(%p), kind=kLoop, calls=%second
}}"""
    found = collectives(Hlo(text), {"fsdp": 2})
    assert [(one.kind, one.bytes) for one in found] == [("all-gather", 16.0)]


def test_offloaded_calls_and_transfers_between_slices():
    text = """%offloaded (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  ROOT %g = f32[8]{0} all-gather(%p), replica_groups={{0,1},{2,3}}, dimensions={0}
}
ENTRY %main (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  %c = ((f32[4]{0}), f32[8]{0}, u32[]) call-start(%p), async_execution_thread="sparsecore", to_apply=%offloaded
  ROOT %d = f32[8]{0} call-done(%c)
  %t = token[] after-all()
  %s = (f32[8]{0}, u32[], token[]) send(%d, %t), frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %r = (f32[8]{0}, u32[], token[]) recv(%t), frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
}"""
    found = {one.axes: (one.kind, one.bytes) for one in collectives(Hlo(text), {"data": 2, "fsdp": 2})}
    assert found == {("fsdp",): ("all-gather", 16.0), ("data",): ("all-reduce", 32.0)}


def test_lines_and_types():
    found = parse(
        '  ROOT %a.1 = (f32[2]{0}, /*index=1*/u8[3]{0:S(1)}) fusion(%b, %c.2), calls=%d, metadata={op_name="x(y)"}'
    )
    assert found == Instruction(
        "a.1", "(f32[2]{0}, /*index=1*/u8[3]{0:S(1)})", "fusion", ("b", "c.2"), ', calls=%d, metadata={op_name="x(y)"}',
        True,
    )  # fmt: skip
    assert found.op_name == "x(y)"
    assert array_bytes(found.type) == 8 and array_bytes(found.type, on_chip=True) == 11
    assert parse("}") is None and parse("HloModule m") is None


def test_memory_traffic_of_a_slice_is_the_slice():
    """A layer read out of a stack: the stack is not read whole each time."""
    stack, x = jnp.zeros((50, 256, 256)), jnp.zeros((4, 256))
    hlo = Hlo(
        jax.jit(lambda w, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])
        .lower(stack, x)
        .compile()
        .as_text()
    )
    assert stack.nbytes <= memory_traffic(hlo) <= 4 * stack.nbytes
