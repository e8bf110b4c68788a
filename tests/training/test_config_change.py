"""A run goes on with its own config; another is refused with what differs, unless that is named and safe."""

import json

import pytest

from stepaudio_jax.training.changes import SAFE, ConfigChangeError, check_unchanged, written
from tests.training import runs


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(written(runs.config()))
    return path


def test_the_same_config_is_no_change(path, tmp_path):
    assert check_unchanged(runs.config(), path) == []
    assert check_unchanged(runs.config(seed=3), tmp_path / "nothing here") == []


def test_a_change_is_refused_with_what_differs_and_what_to_do(path):
    changed = runs.config(**{"optim.learning_rate": 0.5, "seed": 7, "data.batch_size": 4})
    with pytest.raises(ConfigChangeError) as error:
        check_unchanged(changed, path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    for part in (
        "data.batch_size: 2 -> 4; optim.learning_rate: 0.001 -> 0.5; seed: 0 -> 7",
        "data.batch_size, seed cannot change within a run: choose another --workdir",
        "to change it: --allow-change=optim.learning_rate",
    ):
        assert part in message


def test_what_is_named_may_change_if_it_is_safe(path):
    changed = runs.config(**{"optim.learning_rate": 0.5, "steps": 99, "mesh.fsdp": 2})
    allowed = ["optim.learning_rate", "steps", "mesh.fsdp"]
    assert check_unchanged(changed, path, allowed) == [
        "mesh.fsdp: -1 -> 2",
        "optim.learning_rate: 0.001 -> 0.5",
        "steps: 12 -> 99",
    ]
    with pytest.raises(ConfigChangeError, match=r"steps: 12 -> 99\); to change it: --allow-change=steps"):
        check_unchanged(changed, path, ["optim.learning_rate", "mesh.fsdp"])
    with pytest.raises(ConfigChangeError, match="--allow-change=seed: would make it another run"):
        check_unchanged(runs.config(seed=7), path, ["seed"])


def test_a_key_that_came_or_went_is_a_change(path):
    values = json.loads(path.read_text())
    del values["data"]["text_share"]
    values["data"]["taste"] = "good"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigChangeError, match=r"data.taste: good -> none; data.text_share: none -> 1.0"):
        check_unchanged(runs.config(), path)


def test_the_safe_keys_exist():
    """A name that nothing has would allow nothing, silently."""
    import fnmatch

    from stepaudio_jax.training.configs import _flatten

    keys = [key for key, _ in _flatten(runs.config())]
    assert [pattern for pattern in SAFE if not fnmatch.filter(keys, pattern)] == []
