"""Flash attention, in plain JAX and as TPU kernels (interpreted), against its definition in float64."""

import contextlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from stepaudio_jax.kernels import attention, flash_attention
from stepaudio_jax.kernels.block_sizes import BlockSizes
from stepaudio_jax.kernels.reference import reference_attention

SMALL = BlockSizes(block_q=128, block_kv=128, block_kv_load=256, block_q_backward=128, block_kv_backward=128)
"""Small enough that a few hundred tokens are many blocks and several loads."""

FORWARD, GRADIENT = 2e-6, 1e-5


def arrays(seed, batch, q_len, kv_len, heads, kv_heads, dim):
    """q, k, v and the gradients of the output and the log-sum-exp."""
    rng = np.random.default_rng(seed)
    keys = (batch, kv_len, kv_heads, dim)
    shapes = (batch, q_len, heads, dim), keys, keys, (batch, q_len, heads, dim), (batch, q_len, heads)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def everything(attend, q, k, v, do, dlse):
    """(out, lse), (dq, dk, dv); a log-sum-exp of −inf counts as 0."""

    def loss(q, k, v):
        out, lse = attend(q, k, v)
        lse = jnp.where(jnp.isfinite(lse), lse, 0)
        return (out * do).sum() + (lse * dlse).sum(), (out, lse)

    grads, outputs = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return outputs, grads


def truth(inputs, **arguments):
    with jax.enable_x64(True):
        attend = lambda q, k, v: reference_attention(q, k, v, **arguments)  # noqa: E731
        return jax.device_get(everything(attend, *(jnp.asarray(x, jnp.float64) for x in inputs)))


def error(actual, expected) -> float:
    """Relative, and to 1 an element where what is expected is smaller than that: of one key, dq is exactly 0."""
    assert np.all(np.isfinite(actual))
    size = max(np.linalg.norm(expected), np.sqrt(expected.size))
    return float(np.linalg.norm(np.asarray(actual, np.float64) - expected) / size)


def check(implementation, inputs, *, interpret=True, block_sizes=SMALL, **arguments):
    def attend(q, k, v):
        options = {"implementation": implementation, "interpret": interpret, "block_sizes": block_sizes}
        return flash_attention(q, k, v, return_lse=True, **options, **arguments)

    outputs, grads = everything(attend, *inputs)
    true_outputs, true_grads = truth(inputs, **arguments)
    for name, a, b in zip(("out", "lse"), outputs, true_outputs, strict=True):
        assert error(a, b) <= FORWARD, name
    for name, a, b in zip(("dq", "dk", "dv"), grads, true_grads, strict=True):
        assert error(a, b) <= GRADIENT, name
    return outputs, grads


@st.composite
def segment_ids(draw, length: int, batch: int):
    """Rows of contiguous runs, ids in any order, of any length from one token, some of them padding."""
    rows = []
    for _ in range(batch):
        cuts = draw(st.lists(st.integers(0, length), max_size=6))
        ids = draw(st.permutations([0, 3, 1, 7, 2, 5, 4]))
        edges = sorted({0, length, *cuts})
        rows.append(np.repeat(ids[: len(edges) - 1], np.diff(edges)))
    return np.stack(rows).astype(np.int32)


@st.composite
def calls(draw):
    batch = draw(st.integers(1, 2))
    q_len = draw(st.integers(1, 1100))
    same = draw(st.booleans())
    kv_len = q_len if same else draw(st.integers(1, 1100))
    kv_heads, group = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)]))
    arguments = {"causal": draw(st.booleans())}
    if draw(st.booleans()):
        ids = draw(segment_ids(q_len, batch))
        arguments |= {"q_segment_ids": ids, "kv_segment_ids": ids if same else draw(segment_ids(kv_len, batch))}
    if draw(st.booleans()):
        arguments["q_offset"] = draw(st.integers(-300, 1100))
        arguments["kv_offset"] = np.array(draw(st.lists(st.integers(-300, 300), min_size=batch, max_size=batch)))
        arguments["position_stride"] = draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**16))
    return arrays(seed, batch, q_len, kv_len, kv_heads * group, kv_heads, draw(st.sampled_from([64, 128]))), arguments


@settings(max_examples=5)
@given(calls())
def test_the_tpu_kernels(call):
    inputs, arguments = call
    check("pallas_tpu", inputs, **arguments)


@settings(max_examples=5)
@given(calls())
def test_blockwise(call):
    inputs, arguments = call
    check("xla", inputs, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["pallas_tpu", "xla"])
@settings(max_examples=40)
@given(call=calls())
def test_more_calls(implementation, call):
    inputs, arguments = call
    check(implementation, inputs, **arguments)


@pytest.mark.slow
@settings(max_examples=8)
@given(calls())
def test_the_tpu_kernels_do_not_race_anywhere(call):
    inputs, arguments = call
    with races_watched() as interpret:
        check("pallas_tpu", inputs, interpret=interpret, **arguments)


@contextlib.contextmanager
def races_watched():
    """Fails if the interpreted kernels raced; a buffer is NaN until it is written."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # says so only here

    yield pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", random_seed=3)
    assert not interpret_pallas_call.races.races_found


@pytest.mark.parametrize("case", ["causal", "packed", "spans", "offsets", "empty row"])
def test_the_tpu_kernels_do_not_race(case):
    runs = [150, 1, 60, 80, 9], [0, 0, 250, 50, 0]  # the second row has far less to visit than the first
    ids = np.stack([np.repeat([5, 2, 0, 9, 0], run) for run in runs])
    arguments = {
        "packed": {"q_segment_ids": ids, "kv_segment_ids": ids},
        "empty row": {"q_segment_ids": ids * [[0], [1]], "kv_segment_ids": ids * [[0], [1]]},
        "offsets": {"q_offset": np.array([90, 0]), "kv_offset": 7, "position_stride": 2},
    }.get(case, {})
    # So little memory that the backward pass takes its queries in spans.
    sizes = SMALL if case != "spans" else BlockSizes(128, 128, 256, 128, 128, vmem_limit=2_600_000)
    with races_watched() as interpret:
        inputs = arrays(0, 2, 300, 300, 2, 1, 64)
        check("pallas_tpu", inputs, interpret=interpret, block_sizes=sizes, causal=True, **arguments)


@pytest.mark.parametrize("implementation", ["pallas_tpu", "xla"])
def test_queries_that_see_nothing_give_zero_and_no_gradient(implementation):
    q_ids = np.array([[1] * 100 + [0] * 200 + [4] * 100], np.int32)
    kv_ids = np.array([[0] * 150 + [1] * 250], np.int32)
    (out, _), grads = check(
        implementation,
        arrays(1, 1, 400, 400, 2, 2, 64),
        causal=False,
        q_segment_ids=q_ids,
        kv_segment_ids=kv_ids,
    )
    assert not np.any(out[:, 100:]) and np.any(out[:, :100])
    dq, dk, dv = grads
    assert not np.any(dq[:, 100:]) and not np.any(dk[:, :150]) and not np.any(dv[:, :150])

    nothing = flash_attention(
        *arrays(1, 1, 400, 400, 2, 2, 64)[:3],
        causal=True,
        kv_offset=401,
        implementation=implementation,
        interpret=True,
        return_lse=True,
    )
    assert not np.any(nothing[0]) and np.all(np.isneginf(nothing[1]))


@pytest.mark.parametrize("implementation", ["pallas_tpu", "xla"])
@pytest.mark.parametrize(("length", "dim"), [(300, 64), (1100, 128)])
def test_bfloat16_is_no_worse_than_the_library(implementation, length, dim):
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in arrays(2, 1, length, length, 4, 2, dim)[:4]]
    q, k, v, do = inputs
    exact = [np.asarray(x, np.float32) for x in inputs]
    (true_out, _), true_grads = truth([*exact, np.zeros((1, length, 4))], causal=True)

    def errors(attend):
        out, pull = jax.vjp(attend, q, k, v)
        pairs = zip((out, *pull(do)), (true_out, *true_grads), strict=True)
        return [float(np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)) for a, b in pairs]

    ours = errors(lambda q, k, v: flash_attention(q, k, v, causal=True, implementation=implementation, interpret=True))
    library = errors(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True))
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours, library, strict=True):
        print(f"{implementation} {length} × {dim} {name}: {a:.5f} ({b:.5f})")
        assert a <= 1.1 * b


def test_a_custom_scale():
    for scale in (0.7, -0.2, 0.0):
        check("pallas_tpu", arrays(3, 1, 200, 200, 2, 1, 64), causal=True, scale=scale)
        check("xla", arrays(3, 1, 200, 200, 2, 1, 64), causal=True, scale=scale)


def test_chunks_of_a_prefill_are_the_whole():
    """Queries in two calls, the second at an offset, against one call."""
    q, k, v, *_ = arrays(4, 2, 640, 640, 2, 1, 64)
    whole = flash_attention(q, k, v, causal=True)
    for implementation in ("xla", "pallas_tpu"):
        call = {"causal": True, "implementation": implementation, "interpret": True, "block_sizes": SMALL}
        first = flash_attention(q[:, :250], k[:, :250], v[:, :250], **call)
        rest = flash_attention(q[:, 250:], k, v, q_offset=250, **call)
        np.testing.assert_allclose(np.concatenate([first, rest], 1), whole, atol=3e-6)


def test_memory_of_the_blockwise_form_is_linear():
    """Eight times the length may need eight times the temporary memory, not sixty-four."""

    def temporaries(length):
        x = jax.ShapeDtypeStruct((1, length, 2, 64), jnp.float32)

        def loss(q, k, v):
            return flash_attention(q, k, v, causal=True, implementation="xla").sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(16_384) < 9 * temporaries(2048)


def test_the_platform_chooses(caplog):
    attention._say_once.cache_clear()
    q = jnp.zeros((1, 8, 2, 64), jnp.bfloat16)
    choose = lambda asked, q, plain=True: attention._choose(asked, q, q, plain=plain)  # noqa: E731
    assert choose(None, q) == "xla"
    mesh = jax.sharding.AbstractMesh(
        (1,), ("data",), (jax.sharding.AxisType.Auto,), abstract_device=jax.sharding.AbstractDevice("TPU v5e", 1, "tpu")
    )
    with jax.sharding.use_abstract_mesh(mesh), caplog.at_level(logging.WARNING):
        assert choose(None, q) == "pallas_tpu"
        for _ in range(2):
            assert choose(None, q[..., :32]) == "xla"
    assert [r.message for r in caplog.records] == ["attention by XLA: the TPU kernels have no head_dim 32 in bfloat16"]
    assert choose("cudnn", q) == "cudnn"
    assert choose("cudnn", q, plain=False) == "xla"
    assert choose("cudnn", q.astype(jnp.float32)) == "xla"


ONES = np.ones((1, 4), np.int32)


@pytest.mark.parametrize(
    ("shapes", "arguments", "message"),
    [
        (((1, 4, 3, 64), (1, 4, 2, 64)), {}, "heads: expected a multiple of 2 key/value heads, found 3"),
        (((1, 4, 2, 64), (2, 4, 2, 64)), {}, "q and k: expected the same batch, found 1 and 2"),
        (((1, 4, 2, 64), (1, 4, 2, 128)), {}, "q and k: expected the same head_dim, found 64 and 128"),
        (((1, 4, 2, 64), (1, 4, 2, 64), (1, 5, 2, 64)), {}, r"k and v: expected one shape, found \(1, 4, 2, 64\) and"),
        (((4, 2, 64), (1, 4, 2, 64)), {}, r"q: expected \[batch, length, heads, head_dim\].*found \(4, 2, 64\)"),
        (((1, 0, 2, 64), (1, 4, 2, 64)), {}, r"q: expected .* none of them 0, found \(1, 0, 2, 64\)"),
        (((1, 4, 2, 48), (1, 4, 2, 48)), {"implementation": "pallas_tpu"}, r"head_dim: .* \(64, 128\), found 48"),
        (((1, 4, 2, 64), (1, 4, 2, 64)), {"implementation": "triton"}, "implementation: expected .*found 'triton'"),
        (((1, 4, 2, 64), (1, 4, 2, 64)), {"q_segment_ids": ONES}, "give both or neither, found q_segment_ids alone"),
        (((1, 4, 2, 64), (1, 4, 2, 64)), {"kv_segment_ids": ONES}, "found kv_segment_ids alone"),
        (
            ((1, 4, 2, 64), (1, 4, 2, 64)),
            {"q_segment_ids": ONES[:, :3], "kv_segment_ids": ONES},
            r"q_segment_ids: expected shape \(1, 4\), found \(1, 3\)",
        ),
        (
            ((1, 4, 2, 64), (1, 4, 2, 64)),
            {"q_segment_ids": ONES, "kv_segment_ids": np.array([[1, 2, 2, 1]])},
            "kv_segment_ids: expected one contiguous run of each id, found id 1 of row 0 beginning again at 3",
        ),
        (
            ((1, 4, 2, 64), (1, 4, 2, 64)),
            {"q_segment_ids": ONES.astype(np.float32), "kv_segment_ids": ONES},
            "q_segment_ids: expected integers, found float32",
        ),
        (
            ((1, 4, 2, 64), (1, 4, 2, 64)),
            {"q_segment_ids": [[1, 1, 1, 1]], "kv_segment_ids": ONES},
            r"q_segment_ids: expected an array of shape \(1, 4\), found a list",
        ),
        (((1, 4, 2, 64), (1, 4, 2, 64)), {"q_offset": np.zeros(2)}, r"q_offset: .*shape \(1,\), found \(2,\)"),
        (((1, 4, 2, 64), (1, 4, 2, 64)), {"position_stride": 0}, "position_stride: expected a positive int, found 0"),
    ],
)
def test_mistakes_are_named_while_tracing(shapes, arguments, message):
    q, k, *v = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda q, k, v: flash_attention(q, k, v, causal=True, **arguments), q, k, v[0] if v else k)


def test_types_that_differ_are_refused():
    q = jnp.zeros((1, 4, 2, 64), jnp.bfloat16)
    with pytest.raises(ValueError, match="q, k and v: expected one type, found bfloat16, float32 and float32"):
        flash_attention(q, q.astype(jnp.float32), q.astype(jnp.float32), causal=True)
    half = q.astype(jnp.float16)
    with pytest.raises(ValueError, match="q: the TPU kernels expect bfloat16 or float32, found float16"):
        flash_attention(half, half, half, causal=True, implementation="pallas_tpu")
