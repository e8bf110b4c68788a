"""The command, on good and bad input: one line, the cause, exit code 2, nothing written, no traceback."""

import json
import shutil
import struct

import numpy as np
import pytest
import soundfile

from stepaudio_jax import checkpoints, cli
from tests import small


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "small"
    checkpoints.save(path, small.model(), small.tokenizer().backend.to_str())
    return path


def wav(path, samples, rate=16000, **options):
    soundfile.write(path, samples, rate, **options)
    return str(path)


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = cli.main([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_ask_prints_json(checkpoint, tmp_path, capsys):
    file = wav(tmp_path / "a.wav", small.sound(1.0))
    code, out, _ = run(
        capsys, "ask", file, file, "What?", "--checkpoint", checkpoint, "--json", "--max-new-tokens", 6, "--seed", 1
    )
    report = json.loads(out)
    assert code == 0
    assert set(report) == {
        "think",
        "answer",
        "audio_seconds",
        "cached_tokens",
        "audio_tokens",
        "prompt_tokens",
        "completion_tokens",
        "stop_reason",
        "seconds",
    }
    assert (report["audio_seconds"], report["audio_tokens"]) == (2.0, 26)
    assert 1 <= report["completion_tokens"] <= 6 and report["seconds"] > 0


def test_ask_tells_of_a_silent_first_channel(checkpoint, tmp_path, capsys):
    sound = small.sound(0.5)
    file = wav(tmp_path / "call.wav", np.stack([0 * sound, sound], 1))
    options = ("--checkpoint", checkpoint, "--max-new-tokens", 2)
    said = f"{file}: the first channel is silent while channel 2 of 2 is not; only the first is heard"
    code, _, err = run(capsys, "ask", file, "What?", *options)
    assert code == 0 and err.startswith(f"warning: {said}")
    code, out, err = run(capsys, "ask", file, "What?", *options, "--json")
    assert code == 0 and len(json.loads(out)["warnings"]) == 1 and said in json.loads(out)["warnings"][0]
    assert said in err


def test_ask_reads_no_more_sound_than_the_model_has_positions_for(checkpoint, tmp_path, capsys):
    """A few megabytes of FLAC may hold hours."""
    positions = checkpoints.read_config(checkpoint).decoder.max_position_embeddings
    file = wav(tmp_path / "hours.flac", np.zeros(round((positions / 12.5 + 1) * 16000), np.int16))
    code, out, err = run(capsys, "ask", file, "What?", "--checkpoint", checkpoint)
    assert code == 2 and not out and err.count("\n") == 1
    assert f"more than the {positions / 12.5:g} s allowed by the {positions} positions of the model" in err


def test_ask_streams_thinking_then_the_answer(checkpoint, tmp_path, capsys):
    file = wav(tmp_path / "a.wav", small.sound(0.5))
    options = ("--checkpoint", checkpoint, "--temperature", 0, "--max-new-tokens", 30)
    _, out, _ = run(capsys, "ask", file, "What?", *options, "--think-budget", 4, "--json")
    report = json.loads(out)
    code, out, _ = run(capsys, "ask", file, "What?", *options, "--think-budget", 4)
    assert code == 0
    assert "".join(out.split()) == "".join((report["think"] + report["answer"]).split())


def test_eight_channels_at_192_khz_work(checkpoint, tmp_path, capsys):
    time = np.arange(192_000) / 192_000
    channels = np.random.default_rng(0).standard_normal((192_000, 8)) * 0.1
    channels[:, 0] = np.sin(2 * np.pi * 440 * time) * 0.3
    file = wav(tmp_path / "a.wav", channels, 192_000)
    code, out, _ = run(capsys, "ask", file, "What?", "--checkpoint", checkpoint, "--json", "--max-new-tokens", 1)
    assert code == 0 and json.loads(out)["audio_tokens"] == 13


def bad_sounds(tmp_path):
    good = tmp_path / "good.wav"
    soundfile.write(good, small.sound(1.0), 16000)
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("this is no sound\n" * 10)
    (tmp_path / "cut.wav").write_bytes(good.read_bytes()[:9000])
    samples = small.sound(1.0)
    samples[4000] = np.nan
    wav(tmp_path / "nan.wav", samples, subtype="FLOAT")
    wav(tmp_path / "nothing.wav", np.zeros(0))
    wav(tmp_path / "short.wav", small.sound(0.005))
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "header.wav").write_bytes(b"RIFF" + struct.pack("<I", 36) + b"WAVE")


BAD_SOUNDS = {
    "missing.wav": "no such file",
    "empty.wav": "the file is empty",
    "text.wav": "not a sound file|can read it",
    "cut.wav": "truncated",
    "nan.wav": "1 samples are not finite numbers, the first at 0.250 s",
    "nothing.wav": "holds no sound",
    "short.wav": "0.0050 s of sound; one audio token needs more than 0.020 s",
    "folder.wav": "a folder",
    "header.wav": "not a sound file|can read it",
}


@pytest.mark.parametrize("name", BAD_SOUNDS)
def test_bad_sound_is_one_line_and_exit_2(name, tmp_path, capsys):
    import re

    bad_sounds(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    code, out, err = run(capsys, "ask", tmp_path / name, "What?")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and "Traceback" not in err
    assert err.startswith("stepaudio ask: ") and name in err and re.search(BAD_SOUNDS[name], err), err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_bad_checkpoints_are_one_line_and_exit_2(checkpoint, tmp_path, capsys):
    file = wav(tmp_path / "a.wav", small.sound(1.0))

    def fails(folder, message):
        code, out, err = run(capsys, "ask", file, "What?", "--checkpoint", folder)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err, err

    fails(tmp_path / "none", "no such checkpoint")
    bare = shutil.copytree(checkpoint, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    fails(bare, "tokenizer.json: no such file")
    other = shutil.copytree(checkpoint, tmp_path / "other")
    text = (other / "tokenizer.json").read_text().replace("<audio_patch>", "<audio_batch>")
    (other / "tokenizer.json").write_text(text)
    fails(other, "has no <audio_patch>")


def test_a_prompt_longer_than_the_positions(checkpoint, tmp_path, capsys):
    for seconds, said in ((40.5, "audio (40 s)"), (60.0, "60.0 s of sound")):
        file = wav(tmp_path / "a.wav", small.sound(seconds))
        code, out, err = run(capsys, "ask", file, "What?", "--checkpoint", checkpoint)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "512 positions" in err and said in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--temperature", "-1"), "temperature: expected 0"),
        (("--top-p", "2"), "top_p: expected more than 0 and at most 1, found 2.0"),
        (("--max-new-tokens", "0"), "max_new_tokens: expected at least 1"),
    ],
)
def test_bad_flags(argv, message, checkpoint, tmp_path, capsys):
    file = wav(tmp_path / "a.wav", small.sound(0.5))
    code, _, err = run(capsys, "ask", file, "What?", "--checkpoint", checkpoint, *argv)
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_file_without_a_question(tmp_path, capsys):
    file = wav(tmp_path / "a.wav", small.sound(0.5))
    code, _, err = run(capsys, "ask", file)
    assert code == 2 and "no question" in err


def test_a_config_mistake_in_training(tmp_path, capsys):
    code, _, err = run(capsys, "train", "--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}", "--config.stpes=3")
    assert code == 2 and "did you mean steps" in err and not (tmp_path / "run").exists()
