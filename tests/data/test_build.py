"""`data build`: the input's order, the same bytes after any number of kills, and nothing half-written for whole."""

import contextlib
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stepaudio_jax import checkpoints
from stepaudio_jax.audio import chunk, lengths
from stepaudio_jax.audio.rows import units
from stepaudio_jax.cli import main
from stepaudio_jax.data import encode
from stepaudio_jax.data.build import TooManyBad, build
from stepaudio_jax.data.lengths import HAS_AUDIO, HAS_THINK, Rendering
from stepaudio_jax.data.pieces import Recipe
from stepaudio_jax.data.stored import DatasetError, StoredDataset
from stepaudio_jax.data.think_incomplete import ThinkIncomplete
from stepaudio_jax.text import Tokenizer
from tests.audio.reference import log_mel_float64

FOLDER = str(checkpoints.resolve("tiny"))
TINY = Tokenizer.load(FOLDER)
SIZES = (400, 16_000, 26 * 16_000)  # samples; the last makes two chunks


def record(i: int) -> dict:
    """Every third of text, every second with reasoning, every fifth a pair."""
    sound = {} if i % 3 == 0 else {"audios": [f"{i % 3}.wav"]}
    think = f"<think>First {i}.\n\nThen more.</think>" if i % 2 else ""
    worse = {"rejected_response": "Something else entirely, said at length."} if i % 5 == 0 else {}
    text = f"{'<audio>' if sound else ''}What is it, {i}?"
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": f"{think}Number {i}."}]
    return {"messages": messages, **sound, **worse}


@pytest.fixture
def source(tmp_path) -> Path:
    """Two files: 50 records, four of them bad in three ways, and 7."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        soundfile.write(folder / f"{i}.wav", rng.integers(-(2**15), 2**15, size).astype(np.int16), 16000)
    lines = [json.dumps(record(i)) for i in range(50)]
    lines[4] = "{"
    lines[20] = lines[21] = json.dumps({"messages": []})
    lines[33] = json.dumps(record(33) | {"messages": record(1)["messages"], "audios": ["nowhere.wav"]})
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "b.jsonl").write_text("".join(json.dumps(record(50 + i)) + "\n" for i in range(7)))
    return folder


BAD = (4, 20, 21, 33)
GOOD = [i for i in range(57) if i not in BAD]


def files(source: Path) -> list[str]:
    return [str(source / "a.jsonl"), str(source / "b.jsonl")]


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_order_lengths_and_bad_records(source, tmp_path):
    info = build(files(source), tmp_path / "out", Recipe(FOLDER), records_per_shard=8, workers=1)
    stored = StoredDataset(tmp_path / "out")
    assert len(stored) == info["records"] == len(GOOD)
    assert [shard["records"] for shard in info["shards"]] == [7, 8, 6, 8, 7, 8, 2, 7]
    for i, number in enumerate(GOOD):
        sample, source_record = stored[i], record(number)
        assert sample.conversation.turns[0].text == f"What is it, {number}?"
        assert (sample.rejected is not None) == ("rejected_response" in source_record)
        example = encode(sample.conversation, TINY)
        assert stored.tokens[i] == example.num_tokens
        rejected = encode(sample.rejected, TINY) if sample.rejected else None
        assert stored.rejected_tokens[i] == (rejected.num_tokens if rejected else 0)
        thinks = bool(number % 2)
        assert stored.kind[i] == HAS_AUDIO * (number % 3 > 0) + HAS_THINK * thinks
        units = [-(-((len(piece) + 479) // 160 + 2) // 8) for piece in example.chunks]
        assert stored.units[i] == sum(units) * (2 if rejected else 1)
        for clip in sample.conversation.audio:
            truth, _ = soundfile.read(source / f"{number % 3}.wav", dtype="float32")
            np.testing.assert_array_equal(clip.samples, truth)
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert [entry["where"] for entry in bad] == [f"{source}/a.jsonl:{i + 1}" for i in BAD]
    for part, entry in zip(("not JSON", "messages", "messages", "nowhere"), bad, strict=True):
        assert part in entry["reason"]
    assert info["bad"] == 4 and info["with_sound"] == (stored.kind & 1).sum()


def test_units_hold_the_frames_of_a_chunk():
    for samples in (321, 640, 16_000, 400_000, 400_320):
        assert 8 * units(samples) >= lengths.mel_frames(samples) + 2 > 8 * (units(samples) - 1)


def test_bytes_do_not_depend_on_the_workers(source, tmp_path):
    for workers in (1, 3):
        build(files(source), tmp_path / str(workers), Recipe(FOLDER), records_per_shard=8, workers=workers)
    assert digest(tmp_path / "1") == digest(tmp_path / "3")


def start(source: Path, out: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "stepaudio_jax.cli", "data", "build", *files(source), "--out", str(out)]
    command += ["--records-per-shard", "2", "--workers", "2", *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def written(out: Path) -> int:
    return sum(1 for _ in out.glob("unfinished/*.arrayrecord.json"))


def wait_for(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def test_kill_9_at_random_moments(source, tmp_path):
    """Killed when a random number of shards is whole, three times in one build: the bytes of one never killed."""
    build(files(source), tmp_path / "whole", Recipe(FOLDER), records_per_shard=2, workers=1)
    rng, out, killed = random.Random(0), tmp_path / "out", 0
    for _ in range(3):
        before = written(out)
        process = start(source, out)
        wanted = before + rng.randint(1, 5)
        wait_for(lambda process=process, wanted=wanted: process.poll() is not None or written(out) >= wanted)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.communicate()
        wait_for(lambda workers=workers: not any(Path(f"/proc/{worker}").exists() for worker in workers))
        if (out / "dataset.json").exists():
            break
        killed += 1
        with pytest.raises(DatasetError, match=r"no dataset\.json"):
            StoredDataset(out)
    assert killed >= 2
    process = start(source, out)
    assert process.wait() == 0, process.stderr.read()
    process.stderr.close()
    assert digest(out) == digest(tmp_path / "whole")


def test_ctrl_c_then_again(source, tmp_path):
    process = start(source, tmp_path / "out")
    wait_for(lambda: process.poll() is not None or written(tmp_path / "out"))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=600) == 130 and "Traceback" not in process.stderr.read()
    process.stderr.close()
    build(files(source), tmp_path / "out", Recipe(FOLDER), records_per_shard=2, workers=1)
    assert len(StoredDataset(tmp_path / "out")) == len(GOOD)


class Interrupted(Exception):
    pass


def stopped_midway(source: Path, out: Path, recipe: Recipe) -> None:
    """A build that ends after its third piece."""

    def seen(tally):
        if tally.read > 16:
            raise Interrupted

    with pytest.raises(Interrupted):
        build(files(source), out, recipe, records_per_shard=8, workers=1, seen=seen)


@pytest.mark.parametrize("whole", [False, True])
def test_other_arguments_and_other_input_are_refused(source, tmp_path, whole):
    recipe, out = Recipe(FOLDER), tmp_path / "out"
    if whole:
        build(files(source), out, recipe, records_per_shard=8, workers=1)
    else:
        stopped_midway(source, out, recipe)
    before = digest(out)

    def refused(match, recipe=recipe, paths=None, records_per_shard=8):
        with pytest.raises(DatasetError, match=match):
            build(paths or files(source), out, recipe, records_per_shard=records_per_shard, workers=1)

    refused("records_per_shard was 8, is 9", records_per_shard=9)
    refused(r"transform was None, is .*'seed': 3", Recipe(FOLDER, transform=ThinkIncomplete(3)))
    refused(r"rendering was .*'hf'.*, is .*'vllm'", Recipe(FOLDER, rendering=Rendering("vllm")))
    refused(r"the files were .*a\.jsonl .*b\.jsonl, are .*b\.jsonl", paths=files(source)[1:])
    shutil.copytree(source, tmp_path / "kept")
    with (source / "b.jsonl").open("a") as stream:
        stream.write(json.dumps(record(0)) + "\n")
    refused(r"b\.jsonl has changed, from \d+ bytes to \d+")
    shutil.copy2(tmp_path / "kept" / "b.jsonl", source / "b.jsonl")
    assert digest(out) == before
    assert build(files(source), out, recipe, records_per_shard=8, workers=1)["records"] == len(GOOD)


def test_a_folder_with_something_else_is_refused(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(DatasetError, match="found other files in it"):
        build(files(source), tmp_path / "out", Recipe(FOLDER))
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_killed_before_the_first_or_after_the_last_file(source, tmp_path):
    (tmp_path / "out" / "unfinished").mkdir(parents=True)
    info = build(files(source), tmp_path / "out", Recipe(FOLDER), workers=1)
    (tmp_path / "out" / "unfinished").mkdir()
    assert build(files(source), tmp_path / "out", Recipe(FOLDER), workers=1) == info
    assert not (tmp_path / "out" / "unfinished").exists()


def test_a_report_without_its_shard_is_not_trusted(source, tmp_path):
    stopped_midway(source, tmp_path / "out", Recipe(FOLDER))
    (tmp_path / "out" / "records-00001-of-00008.arrayrecord").unlink()
    build(files(source), tmp_path / "out", Recipe(FOLDER), records_per_shard=8, workers=1)
    stored = StoredDataset(tmp_path / "out")
    assert [stored[i].conversation.turns[0].text for i in (7, 14)] == ["What is it, 8?", "What is it, 15?"]


def test_sound_that_changed_since_is_read_again(source, tmp_path, capsys):
    """Between a build that was interrupted and the next: a file is another, one that was missing has come."""
    flags = [f"--tokenizer={FOLDER}", "--records-per-shard=8", "--workers=1"]
    command = ["data", "build", *files(source), f"--out={tmp_path / 'out'}", *flags]
    allowed, unfinished = "--max-bad-share=0.5", tmp_path / "out" / "unfinished"
    assert main([*command, "--max-bad-share=0.06"]) == 1  # the fourth bad record, in the fifth of eight pieces
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.arrayrecord")}
    assert len(before) == len(list(unfinished.glob("records-*.json"))) == 5
    soundfile.write(source / "nowhere.wav", np.zeros(8000, np.int16), 16000)
    capsys.readouterr()
    assert main([*command, allowed]) == 0
    said = capsys.readouterr().err
    assert f"1 finished piece made again: {source / 'nowhere.wav'} has changed since" in said
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.arrayrecord")}
    assert [name for name in sorted(before) if before[name] != after[name]] == ["records-00004-of-00008.arrayrecord"]
    build(files(source), tmp_path / "anew", Recipe(FOLDER), records_per_shard=8, workers=1)
    assert digest(tmp_path / "out") == digest(tmp_path / "anew")
    assert len(StoredDataset(tmp_path / "out")) == len(GOOD) + 1


def test_sound_in_a_tar_that_changed_since_is_read_again(source, tmp_path):
    """A shard's records all change with it; those of text alone do not."""
    with tarfile.open(source / "all.tar", "w") as tar:
        for i in range(3):
            tar.add(source / f"{i}.wav", f"{i}.wav")
    (source / "text.jsonl").write_text("".join(json.dumps(record(3 * i)) + "\n" for i in range(8)))
    recipe, given = Recipe(FOLDER, roots=(str(source / "all.tar"),)), [*files(source), str(source / "text.jsonl")]
    with pytest.raises(RuntimeError, match="enough"):
        build(given, tmp_path / "out", recipe, records_per_shard=8, workers=1, seen=_enough_after(64))
    soundfile.write(source / "1.wav", np.zeros(8000, np.int16), 16000)
    with tarfile.open(source / "all.tar", "a") as tar:
        tar.add(source / "1.wav", "other.wav")
    tallies = []
    build(given, tmp_path / "out", recipe, records_per_shard=8, workers=1, seen=lambda tally: tallies.append(tally))
    assert tallies[0].changed == [str(source / "all.tar")] * 8 and tallies[0].read == 65
    build(given, tmp_path / "anew", recipe, records_per_shard=8, workers=1)
    assert digest(tmp_path / "out") == digest(tmp_path / "anew")


def _enough_after(records: int):
    def seen(tally):
        if tally.read > records:
            raise RuntimeError("enough")

    return seen


def test_no_such_tokenizer(source, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        build(files(source), tmp_path / "out", Recipe(str(tmp_path / "nowhere")))
    assert not (tmp_path / "out").exists()


def test_too_many_bad_records_stop_it(source, tmp_path, capsys):
    with pytest.raises(TooManyBad, match=r"3 of the 24 records read are bad, more than 4\.0% of all 57"):
        build(files(source), tmp_path / "a", Recipe(FOLDER), records_per_shard=8, workers=1, max_bad_share=0.04)
    assert not (tmp_path / "a" / "dataset.json").exists()
    command = ["data", "build", *files(source), "--out", str(tmp_path / "b"), "--workers", "1"]
    assert main([*command, "--max-bad-share", "0"]) == 1
    shown = capsys.readouterr()
    assert "not JSON" in shown.out and "a.jsonl:34" in shown.out and "more than 0.0%" in shown.err


def test_think_incomplete(source, tmp_path):
    recipe = Recipe(FOLDER, transform=ThinkIncomplete(seed=5, copies=3))
    info = build(files(source), tmp_path / "out", recipe, records_per_shard=8, workers=1)
    thinking = [i for i in GOOD if i % 2]
    assert info["records"] == 3 * len(thinking)
    assert info["left_out"] == {"no reasoning in the last turn": len(GOOD) - len(thinking)}
    stored = StoredDataset(tmp_path / "out")
    assert [stored[i].conversation.turns[0].text for i in range(0, len(stored), 3)] == [
        f"What is it, {number}?" for number in thinking
    ]
    kept = {stored[i].conversation.turns[-1].think for i in range(len(stored))}
    assert None in kept and "First 1." in kept and "First 1.\n\nThen more." in kept
    assert [bool(kind & HAS_THINK) for kind in stored.kind] == [
        bool(stored[i].conversation.turns[-1].think) for i in range(len(stored))
    ]


def test_flags_reach_the_data_set(source, tmp_path):
    """Those of the rendering and of think-incomplete data, down to the records."""
    out = tmp_path / "out"
    flags = ["--think-incomplete=5", "--copies=2", "--keep-think", "--template=released", "--length-rule=vllm"]
    assert main(["data", "build", str(source / "b.jsonl"), f"--out={out}", "--workers=1", *flags]) == 0
    info = json.loads((out / "dataset.json").read_text())
    assert info["rendering"] == {"length_rule": "vllm", "template": "released", "keep_think": True}
    stored, expected = StoredDataset(out), []
    for number in (1, 3, 5):  # of the file's seven records, those that reason
        cuts = (None, f"First {50 + number}.", f"First {50 + number}.\n\nThen more.")
        expected += [cuts[np.random.default_rng([5, number, copy]).integers(3)] for copy in range(2)]
    assert [stored[i].conversation.turns[-1].think for i in range(len(stored))] == expected


def test_mel(source, tmp_path):
    build([str(source / "b.jsonl")], tmp_path / "out", Recipe(FOLDER, mel=True), workers=1)
    stored = StoredDataset(tmp_path / "out")
    for i in range(len(stored)):
        clips, mels = stored[i].conversation.audio, stored.mels(i)
        assert len(mels) == len(clips)
        for clip, mel in zip(clips, mels, strict=True):
            truth = np.concatenate([log_mel_float64(piece) for piece in chunk(clip.samples)])
            np.testing.assert_allclose(mel, truth, atol=1e-4)


@contextlib.contextmanager
def tmpfs(folder: Path, options: str):
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_is_one_line(source, tmp_path, workers, capsys):
    with tmpfs(tmp_path / "small", "size=300k"):
        out = tmp_path / "small" / "out"
        command = ["data", "build", *files(source), "--out", str(out), "--records-per-shard", "8"]
        assert main([*command, "--workers", workers]) == 2
        error = capsys.readouterr().err
        assert "No space left on device" in error and error.count("\n") == 1
        assert not (out / "dataset.json").exists() and not list(out.glob("*.unfinished-*"))


def test_a_folder_that_cannot_be_written_is_one_line(source, tmp_path, capsys):
    with tmpfs(tmp_path / "fixed", "ro"):
        assert main(["data", "build", *files(source), "--out", str(tmp_path / "fixed" / "out"), "--workers", "1"]) == 2
        error = capsys.readouterr().err
        assert "Read-only file system" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "flags, match",
    [
        (["--workers", "0"], "--workers: expected at least 1, found 0"),
        (["--records-per-shard", "-1"], "--records-per-shard: expected at least 1"),
        (["--copies", "2"], "only --think-incomplete makes different copies"),
        (["--audio", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_bad_flags(source, tmp_path, flags, match, capsys):
    assert main(["data", "build", *files(source), "--out", str(tmp_path / "out"), *flags]) == 2
    assert match in capsys.readouterr().err
