"""Every stage's tiny config over stored data sets: it trains what it says, stops, and goes on to the bit."""

import importlib
import json
import time

import jax
import numpy as np
import pytest

from configs import lora_tiny
from stepaudio_jax import checkpoints, miniature, training
from stepaudio_jax.cli import main
from stepaudio_jax.data.loading import Loader
from stepaudio_jax.data.stored import StoredDataset
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.training import reference
from stepaudio_jax.training.loop import run_tokenizer
from stepaudio_jax.training.sources import packed_source
from stepaudio_jax.training.stage import prepare
from tests.training import runs


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Data sets as the configs' docstrings make them: scenes, the same with less of the thinking, preferences."""
    folder = tmp_path_factory.mktemp("data")

    def make(name, records, *options, **export):
        source = folder / name
        if not source.exists():
            miniature.export_dataset(source, records=records, **export)
        out = folder / f"{name}{''.join(options)}"
        arguments = [str(source / "data.jsonl"), f"--audio={source}", f"--out={out}/built", "--workers=1", *options]
        assert main(["data", "build", *arguments]) == 0
        return out / "built"

    return {
        "scenes": make("scenes", 60),
        "incomplete": make("scenes", 60, "--think-incomplete=0"),
        "pairs": make("pairs", 24, preferences=True),
    }


def config_of(stage: str, built, **changes):
    """A stage's tiny config: two small rows, two steps."""
    config = importlib.import_module(f"configs.{stage}_tiny").get_config()
    config.update({"steps": 2, "eval_every": 10, "log_every": 1})
    config.checkpoints.save_every = 1
    config.optim.warmup_steps = 1
    name = {"dpo": "pairs", "think_incomplete": "incomplete"}.get(stage, "scenes")
    for source in config.data.sources.values():
        source.path = str(built[name])
    config.data.update({"batch_size": 2, "buckets": ((384, 256 * 1280),)})
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("stage", ["sft", "mid_training", "encoder_pretraining", "think_incomplete", "dpo"])
def test_a_stage_trains_what_it_says(stage, built, tmp_path):
    config = config_of(stage, built)
    path = training.train(config, tmp_path / "run")
    lines = runs.lines(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2]
    if stage == "dpo":  # nothing has moved before the first step: ln 2, which a chance of half is
        assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
        assert lines[1]["loss"] == pytest.approx(np.log(2), abs=0.1)
    if stage == "mid_training":
        assert {"loss/audio", "loss/text"} <= set(lines[0])
    before, after = (runs.parameters(checkpoints.resolve(name)) for name in ("tiny", path))
    for module in before:
        same = jax.tree.all(jax.tree.map(np.array_equal, before[module], after[module]))
        assert same == (module not in config.trainable), module


@pytest.mark.usefixtures("one_device")
def test_what_the_reference_thinks_is_computed_once_and_is_what_the_policy_thinks_at_first(built, tmp_path):
    config = config_of("dpo", built, steps=1)
    config.optim.update({"learning_rate": 1e-6, "warmup_steps": 0})
    training.train(config, tmp_path / "run")
    (scores,) = (np.load(path) for path in (tmp_path / "run" / "reference").glob("*.npy"))
    assert scores.shape == (24, 2) and np.isfinite(scores).all() and (scores[:, 0] > scores[:, 1]).mean() > 0.9
    stage = prepare(config, make_mesh(config.mesh, jax.devices()[:1]))
    tokenizer, text = run_tokenizer(config)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "reference").iterdir()}
    source = packed_source(config, tokenizer, text, stage, tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "reference").iterdir()} == stamps
    batch = next(source)
    found = np.asarray(stage.segment_scores().jit()(stage.new_state(config)._replace(opt_state=None), batch))
    for row in range(len(batch.tokens)):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            own = batch.segment_ids[row] == segment
            assert batch.reference[row][own].sum() == pytest.approx(found[row, segment - 1], abs=1e-3)


def _slow_pass(workdir, config):
    """The body of a process whose reference pass takes its time, and notes after every batch how far it is."""
    jax.config.update("jax_num_cpu_devices", 1)
    reference.SAVE_SECONDS, row = 0.0, Loader.row
    Loader.row = lambda *arguments: time.sleep(0.05) or row(*arguments)
    training.train(config, workdir)


@pytest.mark.usefixtures("one_device")
def test_a_reference_pass_that_is_killed_goes_on(built, tmp_path, monkeypatch, capsys):
    config = config_of("dpo", built)
    training.train(config, tmp_path / "truth")
    folder = tmp_path / "run" / "reference"
    process = runs.start(tmp_path / "run", body=_slow_pass, config=config)
    while not (folder / "unfinished-0-of-1.npz").exists():
        assert process.is_alive()
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    process.join()
    done = int(np.load(folder / "unfinished-0-of-1.npz")["done"])
    assert not (folder / "reference.json").exists() and done >= 1
    computed, save = [], reference._Progress.save
    monkeypatch.setattr(reference._Progress, "save", lambda self, number: computed.append(number) or save(self, number))
    training.train(config, tmp_path / "run")
    assert computed[0] == done + 1 and f"goes on after batch {done} of {computed[-1]}" in capsys.readouterr().err
    ours, truth = (np.load(tmp_path / name / "reference" / "pairs.npy") for name in ("run", "truth"))
    np.testing.assert_allclose(ours, truth, rtol=1e-5)
    assert sorted(path.name for path in folder.iterdir()) == ["pairs.npy", "reference.json"]


def test_a_reference_pass_goes_on_only_with_what_it_was_begun_with(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "SAVE_SECONDS", 0.0)
    begun = reference._Progress(tmp_path, {"init": "a"}, [3])
    begun.scores[0][1] = [-1.0, -2.0]
    begun.save(7)
    same, other = (reference._Progress(tmp_path, {"init": init}, [3]) for init in "ab")
    assert (same.done, other.done) == (7, 0) and np.isnan(other.scores[0]).all()
    np.testing.assert_array_equal(same.scores[0], begun.scores[0])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:200])
    assert reference._Progress(tmp_path, {"init": "a"}, [3]).done == 0


def with_adapters(config):
    config.update({"trainable": ("lora",), "lora": lora_tiny.get_config().lora})
    return config


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("adapt", [lambda config: config, with_adapters], ids=["whole modules", "adapters"])
def test_a_run_over_stored_data_that_is_stopped_goes_on_to_the_bit(adapt, built, tmp_path):
    def config(**changes):
        return adapt(config_of("mid_training", built, steps=4, **changes))

    training.train(config(), tmp_path / "whole")
    with pytest.raises(RuntimeError, match="enough"):
        training.train(config(eval_every=2), tmp_path / "run", evaluate=_enough)
    training.train(config(), tmp_path / "run", allow_change=["eval_every"])
    for name in ("loss", "grad_norm", "tokens", "padding"):
        one, two = ([line[name] for line in runs.lines(tmp_path / run)] for run in ("whole", "run"))
        assert one == two, name
    ends = [runs.parameters(tmp_path / run / "checkpoint") for run in ("whole", "run")]
    jax.tree.map(np.testing.assert_array_equal, *ends)


def _enough(model, tokenizer):
    raise RuntimeError("enough")


@pytest.mark.usefixtures("one_device")
def test_sources_that_cannot_be_used_are_refused_in_one_line(built, tmp_path):
    with pytest.raises(ValueError, match=r"config.data.sources: expected at least one data set"):
        training.train(config_of("sft", built, **{"data.sources": {}}), tmp_path / "none")
    with pytest.raises(ValueError, match=r"no dataset.json"):
        training.train(config_of("sft", built, **{"data.sources.scenes.path": str(tmp_path)}), tmp_path / "other")
    with pytest.raises(ValueError, match=r"sources.pairs: expected a worse reply in every record.*60 of 60"):
        single = config_of("dpo", built, **{"data.sources.pairs.path": str(built["scenes"])})
        training.train(single, tmp_path / "single")


def test_the_small_world_is_exported_as_it_is(built):
    """What was written as wav and jsonl, and read back by the formats, is the conversation it was."""
    stored = StoredDataset(built["scenes"])
    assert len(stored) == 60
    seen = {turn.role for i in range(60) for turn in stored[i].conversation.turns}
    assert seen == {"human", "assistant"}
    for number in range(5):
        rng = np.random.default_rng((0, number))
        kind = miniature.KINDS[int(rng.integers(len(miniature.KINDS)))]
        text = rng.random() < 0.1
        question = miniature.make_text_question(rng) if text else miniature.make_question(rng, kind)
        found = stored[number].conversation
        assert found.turns[-1].text == question.conversation.turns[-1].text
        assert found.turns[-1].think == question.conversation.turns[-1].think
        for ours, truth in zip(found.audio, question.conversation.audio, strict=True):
            np.testing.assert_allclose(ours.samples, truth.samples, atol=2**-15)
    info = json.loads((built["scenes"] / "dataset.json").read_text())
    assert info["records"] == 60
