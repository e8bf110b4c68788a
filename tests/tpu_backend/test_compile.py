"""The real TPU compiler (libtpu, ahead of time, no TPU) accepts the model's programs and says what they need.

One chip of a v5e topology; weights are shapes only, so the real widths cost nothing here.
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from stepaudio_jax import training
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.data import Batch
from stepaudio_jax.inference import SamplingParams
from stepaudio_jax.inference.programs import Programs, Rows
from stepaudio_jax.inference.sampling import SamplingArrays
from stepaudio_jax.models import AudioInput, StepAudio

pytestmark = pytest.mark.tpu_backend


@pytest.fixture
def chip():
    """A sharding that puts everything on one chip of a v5e, whose mesh is in use: the TPU's kernels are chosen."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    device = topology.devices[0]
    with jax.set_mesh(jax.sharding.Mesh(np.array([device]), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        yield jax.sharding.SingleDeviceSharding(device)


def on(chip, tree):
    """The tree's shapes, placed on the chip."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), tree)


def abstract(config: StepAudioConfig, dtype) -> StepAudio:
    return nnx.eval_shape(lambda: StepAudio(config, rngs=nnx.Rngs(0), dtype=dtype))


def shallow(name: str, layers: int = 2) -> StepAudioConfig:
    """A preset at its full width, with few layers."""
    config = StepAudioConfig.preset(name)
    return dataclasses.replace(
        config,
        text_config=dataclasses.replace(config.decoder, num_hidden_layers=layers),
        audio_encoder_config=dataclasses.replace(config.audio, n_audio_layer=layers),
    )


def batch(rows: int, length: int, samples: int) -> Batch:
    ints = np.zeros((rows, length), np.int32)
    units = np.zeros((rows, samples // 1_280), np.int32)
    audio = AudioInput(np.zeros((rows, samples), np.float32), units, units, ints)
    return Batch(ints, ints, ints, ints.astype(bool), ints, audio)


def test_the_tiny_train_step(chip):
    model = abstract(StepAudioConfig.preset("tiny"), jnp.float32)
    from configs.tiny import get_config

    optimizer = training.make_optimizer(get_config().optim, 1000)
    graphdef, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    state = training.TrainState(params, {}, jax.eval_shape(optimizer.init, params), jax.ShapeDtypeStruct((), jnp.int32))
    step = training.make_train_step(graphdef, optimizer)
    compiled = jax.jit(step, donate_argnums=0).lower(on(chip, state), on(chip, batch(32, 112, 55_040))).compile()
    assert 0 < compiled.memory_analysis().temp_size_in_bytes < 8e9


@pytest.mark.parametrize("name", ["8b", "33b"])
def test_a_forward_pass_at_full_width(chip, name):
    model = abstract(shallow(name), jnp.bfloat16)
    graphdef, params = nnx.split(model, nnx.Param)

    def forward(params, data: Batch):
        return nnx.merge(graphdef, params)(data.tokens, data.positions, data.segment_ids, data.audio)[:, -1]

    compiled = jax.jit(forward).lower(on(chip, params), on(chip, batch(1, 512, 16000 * 26))).compile()
    assert "flash_attention_forward" in compiled.as_text()
    weights = sum(leaf.size * 2 for leaf in jax.tree.leaves(params))
    assert compiled.memory_analysis().argument_size_in_bytes == pytest.approx(weights, rel=0.05)


@pytest.mark.parametrize("shared", [False, True], ids=["packed", "sharing prompts"])
def test_a_train_step_with_rematerialisation(chip, shared):
    """Packed rows through both kernels, recomputed in the backward pass."""
    config = shallow("8b")
    config = dataclasses.replace(config, text_config=dataclasses.replace(config.decoder, vocab_size=2048))
    optimizer = optax.sgd(1e-3)
    graphdef, params = nnx.split(abstract(config, jnp.float32), nnx.Param)
    params = nnx.to_pure_dict(params)
    state = training.TrainState(params, {}, jax.eval_shape(optimizer.init, params), jax.ShapeDtypeStruct((), jnp.int32))
    step = training.make_train_step(graphdef, optimizer, training.StepOptions(remat="full", compute_dtype=jnp.bfloat16))
    data = batch(1, 4096, 54_000)
    data = data._replace(groups=data.tokens) if shared else data
    text = jax.jit(step, donate_argnums=0).lower(on(chip, state), on(chip, data)).compile().as_text()
    assert "flash_attention_forward" in text and "flash_attention_backward" in text


def test_the_front_end_runs_at_full_precision(chip):
    """A product in bfloat16 passes would lose the quiet bins: the compiled program must ask for more."""
    from stepaudio_jax.audio import log_mel

    shapes = on(chip, (np.zeros((4, 400_000), np.float32), np.zeros(4, np.int32)))
    lowered = jax.jit(log_mel).lower(*shapes)
    assert "HIGHEST" in lowered.as_text()
    lowered.compile()


def test_prefill_and_decode(chip):
    config = shallow("8b")
    programs = Programs(abstract(config, jnp.bfloat16), vocab_size=158_258, steps=8)
    memory = on(chip, programs.memory_shapes(pages=64, page_size=64, entries=8, places=4))
    state = on(chip, programs.state)
    ints, table = np.zeros(4, np.int32), np.zeros((4, 16), np.int32)
    tokens = np.zeros((4, 256), np.int32)
    arguments = on(chip, (tokens, tokens, ints, ints, table))
    prefill = programs.functions.prefill.lower(state, memory.pages, None, memory.features, *arguments).compile()
    sampling = SamplingArrays.stack([SamplingParams()] * 4)
    steps = np.zeros((4, 8), np.int32)
    rows = on(chip, Rows(ints, ints, ints, steps, steps, ints, table, sampling))
    wanted = jax.ShapeDtypeStruct((), jnp.int32, sharding=chip)
    decode = programs.functions.decode.lower(state, memory.pages, None, memory.seen, rows, wanted).compile()
    for program in (prefill, decode):
        assert "tpu_custom_call" in program.as_text()  # the library's attention over pages
        # The pages are given away and come back in place, not copied.
        assert program.memory_analysis().alias_size_in_bytes >= memory.pages.size * 2
