"""What a run begins with: the weights of a checkpoint, which must have the sizes of the config's model."""

import json

import jax
import numpy as np
import pytest

from stepaudio_jax import checkpoints, training
from stepaudio_jax.config import ConfigError
from tests import small
from tests.training import runs


@pytest.mark.usefixtures("one_device")
def test_a_run_starts_from_a_checkpoint(tmp_path):
    first = training.train(runs.config(steps=4), tmp_path / "one")
    config = runs.config(init=str(first), steps=2)
    config.optim.update({"warmup_steps": 1, "learning_rate": 0.0, "end_learning_rate": 0.0})
    second = training.train(config, tmp_path / "two")
    # a rate of 0: what was read is what is written
    jax.tree.map(np.testing.assert_array_equal, runs.parameters(first), runs.parameters(second))


def test_a_checkpoint_of_other_sizes_is_refused_before_any_compute(tmp_path, monkeypatch):
    """With the field, both sizes, and the preset that it is of, if there is one."""
    monkeypatch.setattr(runs.loop, "prepare", lambda *_: pytest.fail("computed"))

    def refused(**fields) -> str:
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "config.json").write_text(json.dumps(small.config(**fields).to_hf()))
        with pytest.raises(ConfigError) as error:
            training.train(runs.config(init=str(tmp_path / "other")), tmp_path / "run")
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
        return str(error.value)

    said = refused(num_hidden_layers=3, intermediate_size=40)
    assert said.startswith(f"config.init: {tmp_path / 'other' / 'config.json'}") and 'config.model "small"' in said
    for field in ("intermediate_size: expected 48, found 40", "num_hidden_layers: expected 2, found 3"):
        assert f"text_config.{field}" in said
    assert "preset in stepaudio_jax/config.py" in said
    assert "text_config.rope_theta: expected 10000.0, found 5000.0" in refused(rope_theta=5000.0)
    with pytest.raises(ConfigError, match=r"hidden_size: expected 32, found 192;.*or set config.model=tiny"):
        training.train(runs.config(init="tiny"), tmp_path / "run")
    with pytest.raises(checkpoints.CheckpointError, match="no such checkpoint"):
        training.train(runs.config(init=str(tmp_path / "nothing")), tmp_path / "run")
