"""Disks that are full or may not be written, checkpoints that are damaged: said in one line, nothing else is lost."""

import os
import shutil
import subprocess

import pytest

from stepaudio_jax import cli, training
from stepaudio_jax.checkpoints import CheckpointError
from stepaudio_jax.config import PRESETS
from tests.training import runs

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 24 MiB: room for some checkpoints of the small model."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs to be allowed to mount")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_one_line_and_leaves_what_was_saved(small_disk):
    """Once there is room, the same command ends the run."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(22 << 20))
    config = runs.config(**{"checkpoints.newest": 50, "checkpoints.save_every": 1})
    with pytest.raises((CheckpointError, OSError), match=r"(?i)no space left|exhausted") as error:
        training.train(config, small_disk / "run")
    assert "\n" not in str(error.value)
    print("SAID", error.value)
    ballast.unlink()
    training.train(config, small_disk / "run")
    assert [line["step"] for line in runs.lines(small_disk / "run")] == list(range(1, 13))


def test_a_workdir_that_may_not_be_written_is_refused_before_any_compute(tmp_path, monkeypatch, capsys):
    """A folder below a file stands for one that is read-only, which nothing is to root."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(runs.loop.Stage, "new_state", lambda *_: pytest.fail("computed"))
    code = cli.main(["train", "--config=configs/tiny.py", f"--workdir={tmp_path / 'file' / 'run'}"])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and "file" in err and err.startswith("stepaudio train: ")


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_is_gone_on_from(tmp_path, capsys):
    config = runs.config()
    training.train(config, tmp_path / "truth", evaluate=runs.look)
    shutil.copytree(tmp_path / "truth", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint")  # as if killed before it was written
    newest = tmp_path / "run" / "checkpoints" / "000012"
    (newest / "train" / "manifest.ocdbt").write_bytes(b"nothing")
    capsys.readouterr()
    training.train(config, tmp_path / "run", evaluate=runs.look)
    said = capsys.readouterr().err
    assert "set aside" in said and "000012: cannot be read" in said and "goes on after step 10" in said
    runs.same_to_the_bit(tmp_path / "run", tmp_path / "truth")


def test_a_finished_run_is_left_as_it_is_until_it_has_more_steps(tmp_path):
    path = training.train(runs.config(), tmp_path)
    written = path.stat().mtime
    assert training.train(runs.config(), tmp_path) == path and path.stat().mtime == written
    with pytest.raises(ValueError, match="steps: 12 -> 14"):
        training.train(runs.config(steps=14), tmp_path)
    training.train(runs.config(steps=14), tmp_path, allow_change=["steps"])
    assert [line["step"] for line in runs.lines(tmp_path)] == list(range(1, 15))


def test_a_step_of_a_run_can_be_asked(tmp_path, capsys):
    """The trainer's own checkpoint, with its frozen modules in another type, is one to `ask` and `to-hf`."""
    import soundfile

    from tests import small

    assert "small" in PRESETS
    training.train(runs.config(compute_dtype="bfloat16"), tmp_path / "run")
    soundfile.write(tmp_path / "a.wav", small.sound(1.0), 16000)
    step = tmp_path / "run" / "checkpoints" / "000012"
    code = cli.main(["ask", str(tmp_path / "a.wav"), "What?", f"--checkpoint={step}", "--max-new-tokens=2", "--json"])
    assert code == 0, capsys.readouterr().err
    assert cli.main(["convert", "to-hf", str(step), str(tmp_path / "hf")]) == 0
    assert list((tmp_path / "hf").glob("*.safetensors"))
