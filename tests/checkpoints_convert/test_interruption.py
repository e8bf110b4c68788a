"""A conversion killed, started twice, or stopped by the disk: nothing is lost, nothing half passes for whole."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from checkpoints_convert.from_hf import from_hf
from checkpoints_convert.sinks import OrbaxSink
from checkpoints_convert.sources import ConversionError
from checkpoints_convert.to_hf import to_hf
from checkpoints_convert.verify import check_manifest, compare
from stepaudio_jax import checkpoints
from tests.checkpoints_convert.folders import SMALL, assert_same_bits, edit_json, released, tensors

DEEP = (*SMALL, "text_config.num_hidden_layers=24", "text_config.hidden_size=256", "text_config.intermediate_size=1024")


def start(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "checkpoints_convert", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process, seconds=600):
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)


def bytes_under(folder) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # a file given its final name meanwhile
                total += os.stat(os.path.join(root, file)).st_size
    return total


@pytest.mark.parametrize("direction", ["from-hf", "to-hf"])
@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments(tmp_path, direction, times):
    """Killed when a random part of its bytes is on disk, one in each fifth, started again, compared."""
    rng = random.Random(direction)
    hf, ours = released(tmp_path / "hf", overrides=DEEP, max_shard_size=5_000_000), tmp_path / "ours"
    source, dst = hf, tmp_path / "dst"
    if direction == "to-hf":
        from_hf(str(hf), ours)
        source = ours
    unfinished = tmp_path / "dst.unfinished"
    first = start(direction, source, dst)
    assert first.wait() == 0
    first.stderr.close()
    whole = bytes_under(dst)
    shutil.rmtree(dst)
    killed_midway = 0
    for attempt in range(4 * times):  # a busy machine may look too late, and find it whole
        if attempt >= times and killed_midway >= min(times, 3):
            break
        process = start(direction, source, dst)
        wait_for(unfinished.exists, process)
        some = (attempt + rng.random()) % times / times * 0.8 * whole
        wait_for(lambda some=some: bytes_under(unfinished) >= some or dst.exists(), process)
        process.kill()
        process.wait()
        process.stderr.close()
        if not dst.exists():
            killed_midway += 1
            with pytest.raises((checkpoints.CheckpointError, ConversionError), match=r"unfinished|no such"):
                checkpoints.load(dst)
            if (unfinished / "params").exists():
                with pytest.raises(ValueError, match=r"of \d+ tensors are missing|no such file"):
                    checkpoints.load(unfinished)
            again = start(direction, source, dst)
            assert again.wait() == 0, again.stderr.read()
            again.stderr.close()
        assert not unfinished.exists()
        assert compare(str(hf), str(dst)) == [] and check_manifest(str(dst)) == [], attempt
        shutil.rmtree(dst)
    assert killed_midway >= min(times, 3)


def stop_after(monkeypatch, count: int, error: BaseException):
    """The sink fails after so many writes."""
    real, calls = OrbaxSink.write, []

    def write(self, name, start, rows):
        calls.append(name)
        if len(calls) > count:
            raise error
        real(self, name, start, rows)

    monkeypatch.setattr(OrbaxSink, "write", write)
    monkeypatch.setattr("checkpoints_convert.transfer.SAVE_EVERY", 0.0)
    return calls


def interrupt(source, dst, **options):
    """Ctrl-C after twenty writes."""
    with pytest.MonkeyPatch.context() as during, pytest.raises(KeyboardInterrupt):
        stop_after(during, 20, KeyboardInterrupt())
        from_hf(str(source), dst, **options)


def test_it_goes_on_where_it_was(tmp_path, monkeypatch):
    source, dst = released(tmp_path / "hf"), tmp_path / "dst"
    stop_after(monkeypatch, 20, OSError(28, "No space left on device"))
    with pytest.raises(ConversionError, match=r"writing stopped .*No space left.* goes on from there"):
        from_hf(str(source), dst)
    monkeypatch.undo()
    with pytest.raises(
        checkpoints.CheckpointError, match=r"unfinished conversion: \d+ of 70 tensors are missing, the first"
    ):
        checkpoints.load(dst)
    with pytest.raises(checkpoints.CheckpointError, match="tensors are missing"):
        checkpoints.load(tmp_path / "dst.unfinished")
    with pytest.raises(checkpoints.CheckpointError, match="tensors are missing"):
        to_hf(dst, tmp_path / "back")
    done = json.loads((tmp_path / "dst.unfinished" / "progress.json").read_text())["done"]
    assert 10 < len(done) <= 20
    calls = stop_after(monkeypatch, 10**6, OSError())
    from_hf(str(source), dst)
    assert not set(calls) & set(done) and len(calls) == 70 - len(done)
    assert compare(str(source), str(dst)) == []


def test_a_changed_source_starts_over(tmp_path, monkeypatch):
    source, dst = released(tmp_path / "hf"), tmp_path / "dst"
    interrupt(source, dst)
    os.utime(source / "model.safetensors", (1, 1))
    calls = stop_after(monkeypatch, 10**6, OSError())
    from_hf(str(source), dst)
    assert len(calls) == 70 and compare(str(source), str(dst)) == []


def test_a_kill_before_the_renaming_costs_nothing(tmp_path, monkeypatch):
    source, dst = released(tmp_path / "hf"), tmp_path / "dst"
    monkeypatch.setattr("checkpoints_convert.transfer.publish", lambda _: None)
    from_hf(str(source), dst)
    assert not dst.exists()
    monkeypatch.undo()
    calls = stop_after(monkeypatch, 10**6, OSError())
    from_hf(str(source), dst)
    assert calls == [] and compare(str(source), str(dst)) == []


def test_two_at_once_are_one_and_a_refusal(tmp_path):
    source = released(tmp_path / "hf", overrides=DEEP)
    both = [start("from-hf", source, tmp_path / "dst") for _ in range(2)]
    codes = [process.wait() for process in both]
    errors = [process.stderr.read() for process in both]
    assert 0 in codes, errors
    for code, error in zip(codes, errors, strict=True):  # the later one was refused, or came after the first was whole
        assert code == 0 or (code == 2 and ("another conversion is writing" in error or "exists already" in error)), (
            error
        )
    assert compare(str(source), str(tmp_path / "dst")) == []


def test_overwriting_keeps_the_old_until_the_new_is_whole(tmp_path):
    old, new, dst = released(tmp_path / "old"), released(tmp_path / "new", seed=1), tmp_path / "dst"
    from_hf(str(old), dst)
    interrupt(new, dst, overwrite=True)
    assert compare(str(old), str(dst)) == []
    checkpoints.load(dst)
    from_hf(str(new), dst, overwrite=True)
    assert compare(str(new), str(dst)) == [] and not (tmp_path / "dst.unfinished").exists()


def test_a_progress_record_that_cannot_be_read(tmp_path):
    source, dst = released(tmp_path / "hf"), tmp_path / "dst"
    interrupt(source, dst)
    (tmp_path / "dst.unfinished" / "progress.json").write_text("{")
    with pytest.raises(checkpoints.CheckpointError, match=r"progress.json cannot be read"):
        checkpoints.load(dst)
    from_hf(str(source), dst)
    assert compare(str(source), str(dst)) == []


def test_ctrl_c_leaves_something_to_go_on_with(tmp_path):
    source, dst = released(tmp_path / "hf", overrides=DEEP), tmp_path / "dst"
    process = start("from-hf", source, dst)
    wait_for((tmp_path / "dst.unfinished" / "progress.json").exists, process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130 and "Traceback" not in process.stderr.read()
    assert not dst.exists()
    from_hf(str(source), dst)
    to_hf(dst, tmp_path / "back")
    assert_same_bits(tensors(source), tensors(tmp_path / "back"))


def test_unrelated_edits_of_the_manifest_do_not_hide_a_restart(tmp_path):
    source, dst = released(tmp_path / "hf"), tmp_path / "dst"
    from_hf(str(source), dst)
    edit_json(dst / "manifest.json", lambda m: m.update(conversion="other"))
    with pytest.raises(ConversionError, match="exists already"):
        from_hf(str(source), dst)


def test_an_object_store_has_no_renaming(tmp_path, monkeypatch):
    """A local file system behind the calls that gs:// takes: written under its own name, refused until it is whole."""
    for module in ("stepaudio_jax.checkpoints.layout", "checkpoints_convert.transfer", "checkpoints_convert.to_hf"):
        monkeypatch.setattr(f"{module}.is_remote", lambda path: True)
    source, dst = released(tmp_path / "hf"), tmp_path / "dst"
    interrupt(source, dst)
    assert dst.exists() and not (tmp_path / "dst.unfinished").exists()
    with pytest.raises(checkpoints.CheckpointError, match=r"\d+ of 70 tensors are missing"):
        checkpoints.load(dst)
    from_hf(str(source), dst)
    checkpoints.load(dst)
    assert compare(str(source), str(dst)) == []
    with pytest.raises(ConversionError, match="exists already"):
        from_hf(str(source), dst)
    with pytest.raises(ConversionError, match="only a local folder allows"):
        to_hf(dst, tmp_path / "back")
