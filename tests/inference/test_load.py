"""An engine of a checkpoint, over any mesh."""

import jax
import pytest

from stepaudio_jax import checkpoints
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.inference import EngineOptions, Finished, Request, SamplingParams, StepAudio, load_engine
from stepaudio_jax.inference.session import serving_mesh
from stepaudio_jax.parallel import MeshError, ShardingError
from stepaudio_jax.text import Audio, Conversation, human
from tests import small

OPTIONS = EngineOptions(max_rows=8, pages=64, burst=8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("load") / "small"
    checkpoints.save(path, small.model(scale=1.0), small.tokenizer().backend.to_str())
    return path


def reply(engine):
    asked = Conversation((human(Audio(small.sound(1.0)), "What is it?"),))
    sampling = SamplingParams(max_new_tokens=12, temperature=0.0)
    (done,) = (e for e in engine.generate([Request(asked, sampling)]) if isinstance(e, Finished))
    return done.completion


def test_the_same_over_a_mesh(checkpoint):
    alone = reply(load_engine(checkpoint, options=OPTIONS))
    engine = load_engine(checkpoint, options=OPTIONS, mesh={"data": -1, "tensor": 2})
    kernel = engine.programs.state["decoder"]["lm_head"]
    spread = reply(engine)
    assert spread.token_ids == alone.token_ids
    assert spread.log_probs == pytest.approx(alone.log_probs, abs=1e-4)
    assert len(kernel.sharding.device_set) == jax.device_count()
    assert kernel.addressable_shards[0].data.size * 2 == kernel.size


def test_a_session_takes_one_too(checkpoint):
    session = StepAudio.load(checkpoint, options=OPTIONS, mesh={"data": 4, "tensor": 2})
    assert len(session.engine.programs.state["decoder"]["embed_tokens"].sharding.device_set) == 8


@pytest.mark.parametrize(
    ("mesh", "error", "message"),
    [
        ({"data": 3}, MeshError, "nearest"),
        ({"rows": 8}, MeshError, "unknown axis rows"),
        ({"tensor": 8}, ShardingError, "does not divide"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_read(checkpoint, monkeypatch, mesh, error, message):
    monkeypatch.setattr(checkpoints, "load", None)
    with pytest.raises(error, match=message):
        load_engine(checkpoint, options=OPTIONS, mesh=mesh)
    with pytest.raises(ShardingError, match="max_rows 6"):
        load_engine(checkpoint, options=EngineOptions(max_rows=6), mesh={"data": 8})


@pytest.mark.parametrize(
    ("preset", "devices", "expected"),
    [
        ("33b", 8, {"data": 1, "tensor": 8}),
        ("33b", 4, {"data": 1, "tensor": 4}),
        ("33b", 16, {"data": 2, "tensor": 8}),
        ("8b", 8, {"data": 2, "tensor": 4}),
        ("33b", 3, {"data": 3, "tensor": 1}),
    ],
)
def test_heads_are_dealt_out_as_far_as_they_go(preset, devices, expected):
    assert serving_mesh(StepAudioConfig.preset(preset), devices) == expected


def test_the_config_of_a_checkpoint_without_its_arrays(checkpoint):
    assert checkpoints.read_config(checkpoint) == StepAudioConfig.read(checkpoint)
    assert checkpoints.read_config(checkpoint, yarn_factor=2.0) == StepAudioConfig.read(checkpoint, yarn_factor=2.0)
