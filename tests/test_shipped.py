"""The checkpoint that comes with the package: its size, its card, and what it hears, in small; and the demo."""

import re
from pathlib import Path

import jax
import pytest
import soundfile
from flax import nnx

from stepaudio_jax import StepAudio, checkpoints, cli
from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.evals import evaluate
from stepaudio_jax.evals.miniature import event_scores, held_out_items, score_answer, silenced

FOLDER = checkpoints.resolve("tiny")


@pytest.fixture(scope="module")
def model() -> StepAudio:
    return StepAudio.load("tiny")


def test_it_is_small_and_holds_no_pickle():
    files = [path for path in Path(FOLDER).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]
    assert {"config.json", "tokenizer.json", "generation_config.json", "README.md"} <= {path.name for path in files}


def test_it_is_the_preset():
    loaded, tokenizer = checkpoints.load("tiny")
    assert loaded.config == StepAudioConfig.preset("tiny")
    assert tokenizer.vocab_size == loaded.config.decoder.vocab_size
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(nnx.state(loaded, nnx.Param))} == {"bfloat16"}


def test_it_hears(model):
    """A few held-out scenes of each kind; `stepaudio eval` runs the whole examination of the card."""
    result = evaluate(model.generate, held_out_items(8, seed=3), score_answer)
    kinds, _ = event_scores(result)
    assert result.overall.mean >= 0.85 and kinds >= 0.95, (result.groups, kinds)


def test_it_guesses_where_there_is_nothing_to_hear(model):
    result = evaluate(model.generate, silenced(held_out_items(6, seed=3)), score_answer)
    thoughts = [completion.think for _, completion, _ in result.answers]
    assert sum("I hear nothing" in think for think in thoughts) >= 0.9 * len(thoughts)
    assert result.overall.mean < 0.65  # a third to a half of these can be guessed


def test_it_can_be_asked_from_python(model):
    item = held_out_items(1)[0]
    asked = item.request.conversation
    reply = model.ask([asked.audio[0]], asked.turns[-1].text)
    assert reply.complete and reply.think.startswith("I hear:") and reply.finish_reason == "stop"
    assert model.ask([asked.audio[0].samples], asked.turns[-1].text).token_ids == reply.token_ids


def test_the_demo(tmp_path, capsys):
    folder = tmp_path / "scenes"
    assert cli.main(["demo", "--folder", str(folder), "--seed", "1"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"[0-3] of 3 right", out) and "stepaudio ask" in out and "seed 1" in out
    files = sorted((folder / "seed-1").iterdir())
    assert [file.name for file in files] == ["scene-1.wav", "scene-2.wav", "scene-3.wav"]
    for file in files:
        samples, rate = soundfile.read(file)
        assert rate == 16000 and 0.4 < len(samples) / rate <= 4.0
