"""`stepaudio data check` counts what is there, names every bad record, and stops where too many are bad."""

import base64
import importlib.util
import io
import json
from collections import Counter
from html.parser import HTMLParser
from typing import ClassVar

import numpy as np
import pytest
import soundfile
from etils import epath
from etils.epath.backend import fsspec_backend
from fsspec.implementations.memory import MemoryFileSystem

from stepaudio_jax import cli
from stepaudio_jax.audio import lengths
from stepaudio_jax.data.check import check
from stepaudio_jax.data.findings import AUDIBLE, letters_by_script
from stepaudio_jax.data.page import render_page
from stepaudio_jax.text import Conversation, Text, Turn, assistant
from tests import small
from tests.data import records
from tests.data.records import CLIP, swift, tone


@pytest.fixture
def folder(tmp_path):
    records.write_sounds(tmp_path)
    return tmp_path


def run(capsys, *argv) -> tuple[int, str, str]:
    code = cli.main(["data", "check", *map(str, argv)])
    return code, *capsys.readouterr()


def test_sound_that_is_probably_not_what_was_meant(folder, capsys):
    """Speech on the right only is told of; floats on the scale of 16 bits are refused."""
    sound = tone()
    soundfile.write(folder / "right.wav", np.stack([0 * sound, sound], 1), 16000)
    soundfile.write(folder / "scaled.wav", sound * 32768, 16000, subtype="FLOAT")
    array = {"array": np.stack([0 * sound, sound], 1).tolist(), "sampling_rate": 16000}
    lines = [swift(), swift(audio="right.wav"), swift(audio="right.wav"), swift(audio="scaled.wav"), swift(audio=array)]
    path = records.write_lines(folder / "set.jsonl", lines)
    code, out, _ = run(capsys, path, "--json", "--max-bad-share", 0.3)
    report = json.loads(out)
    assert code == 0 and (report["good"], report["bad"]) == (4, 1)
    assert report["counts"]["dialogues with a silent first channel"] == 3
    assert [entry["where"] for entry in report["warnings"]] == [f"{path}:2", f"{path}:3", f"{path}:5"]
    assert "the first channel is silent" in report["warnings"][0]["reason"]
    assert "peak" in report["bad_records"][0]["reason"] and "divide them by 32768" in report["bad_records"][0]["reason"]
    code, out, _ = run(capsys, path, "--max-bad-share", 0.3, "--report", folder / "page.html")
    assert "dialogues with a silent first channel" in out and "right.wav: the first channel is silent" in out
    assert "Warnings about sound" in (folder / "page.html").read_text()


def test_what_is_counted(folder, capsys):
    text = {"messages": [{"role": "user", "content": "Два или 三?"}, {"role": "assistant", "content": "abc 二"}]}
    lines = [swift(), swift(audio="other.flac", reply="<think>a</think>b", rejected_response="One."), text, "{"]
    path = records.write_lines(folder / "set.jsonl", lines)
    code, out, _ = run(capsys, path, "--json", "--max-bad-share", 0.3)
    report = json.loads(out)
    assert code == 0 and (report["records"], report["good"], report["bad"]) == (4, 3, 1)
    assert report["counts"] == {
        "human turns": 3,
        "assistant turns": 3,
        "dialogues with sound": 2,
        "dialogues with reasoning": 1,
        "pairs to prefer by": 1,
    }
    assert report["clip_seconds"]["least"] == 0.25 and report["clip_seconds"]["most"] == 0.5
    assert report["hours_of_sound"] == round(0.75 / 3600, 4)
    scripts = {"Cyrillic": 6, "Han": 2, "Latin": len("HowmanyTwo") + len("Howmanyab") + 3}
    total = sum(scripts.values())
    assert report["scripts"] == {name: round(n / total, 6) for name, n in Counter(scripts).most_common()}
    assert report["bad_records"][0]["where"] == f"{path}:4" and "not JSON" in report["bad_records"][0]["reason"]


def test_tokens_are_those_of_the_prompt_template(folder):
    """Two special tokens and a role line a turn, the think block, and one token per 80 ms of sound in its brackets."""
    tokenizer = small.tokenizer()
    path = records.write_lines(folder / "set.jsonl", [swift(reply="<think>a</think>Two.")])
    pieces = ["human\n", "How many?", "assistant\n<think>\n", "a\n</think>\nTwo."]
    expected = sum(len(tokenizer.encode(piece)) for piece in pieces) + 4 + 2 + lengths.audio_tokens(8000)
    assert check([path], tokenizer).tokens == [expected]


def test_letters_by_script():
    text = Turn("human", (Text("Ab é ñ, 1+1 漢字かなカナ한국 Привет عربي हिन्दी 🎵"),))
    letters = letters_by_script(Conversation((text, assistant("x", think="yz"))))
    assert letters == {"Latin": 7, "Han": 2, "Hiragana": 2, "Katakana": 2, "Hangul": 2, "Cyrillic": 6, "Arabic": 4,
                       "Devanagari": 3}  # fmt: skip


@pytest.mark.parametrize("name", records.MAKE)
def test_every_bad_record_is_named_and_the_run_goes_on(folder, capsys, name):
    good = records.MAKE[name]()
    faults = [*((make(name), reason) for make, reason in records.FAULTS.values()), *records.BROKEN_LINES.items()]
    lines = [line for fault, _ in faults for line in (good, fault)] + [good]
    path = records.write_lines(folder / "set.jsonl", lines)
    code, out, _ = run(capsys, path, "--json", "--max-bad-share", 1)
    report = json.loads(out)
    assert code == 0
    assert report["good"] == len(faults) + 1 and report["bad"] == len(faults)
    assert [bad["where"] for bad in report["bad_records"]] == [f"{path}:{2 * i + 2}" for i in range(len(faults))]


def test_above_the_share_it_stops_with_a_summary(folder, capsys):
    lines = [swift()] * 50 + [swift(audio="none.wav"), swift()] * 50
    path = records.write_lines(folder / "set.jsonl", lines)
    code, out, err = run(capsys, path, "--json", "--max-bad-share", 0.1)
    report = json.loads(out)
    assert code == 1 and report["bad"] == 16 and report["seen"] == 50 + 31  # the 16th of 150 makes it certain
    assert "more than 10.0% of the records are bad; stopped after 81 of 150" in err
    code, out, _ = run(capsys, path, "--max-bad-share", 0.1)
    assert code == 1 and f'{path}:51: audios[0]: "none.wav": no such file' in out
    code, out, err = run(capsys, path, "--json", "--max-bad-share", 0.34)
    assert code == 0 and json.loads(out)["seen"] == 150 and not err


def test_reasons_are_no_markup_of_the_terminal(folder, capsys):
    path = records.write_lines(folder / "set.jsonl", [{"[red]": 1}, swift(role="[/b]")])
    code, out, _ = run(capsys, path, "--max-bad-share", 1)
    assert code == 0 and out.count("[red]") == 2 and out.count("[/b]") == 1  # the table of reasons leaves names out


def test_a_limit_looks_at_the_first_only(folder, capsys):
    path = records.write_lines(folder / "set.jsonl", [swift()] * 3 + ["{"])
    code, out, _ = run(capsys, path, path, "--json", "--limit", 3, "--max-bad-share", 0)
    assert code == 0 and json.loads(out)["good"] == 3


def test_findings_do_not_depend_on_the_threads(folder):
    lines = [swift(id=i, audio="none.wav" if i % 7 == 3 else CLIP) for i in range(60)]
    path = records.write_lines(folder / "set.jsonl", lines)
    one, many = (check([path], small.tokenizer(), max_bad_share=1, workers=workers) for workers in (1, 8))
    assert one.to_json() == many.to_json()
    assert [sample.where for sample in one.audible] == [sample.where for sample in many.audible]


def test_sounds_elsewhere_and_prompts(folder, tmp_path_factory, capsys):
    path = tmp_path_factory.mktemp("elsewhere") / "set.jsonl"
    prompt = {"prompt": [{"role": "user", "content": "<audio>?"}], "audios": [CLIP], "reward_model": {}}
    records.write_lines(path, [prompt])
    assert run(capsys, path, "--prompts")[0] == 1
    assert run(capsys, path, "--prompts", "--audio", folder)[0] == 0
    assert run(capsys, path, "--audio", folder)[0] == 1


def test_a_bucket(folder, capsys, monkeypatch):
    """The calls that gs:// takes, with a file system in memory behind them."""

    class Bucket(MemoryFileSystem):
        protocol = ("gs", "gcs")
        store: ClassVar[dict] = {}
        pseudo_dirs: ClassVar[list] = [""]

    monkeypatch.setattr(type(fsspec_backend), "_get_filesystem", lambda self, name: Bucket())
    (epath.Path("gs://b") / "sounds").mkdir(parents=True)
    for name in (CLIP, "other.flac"):
        (epath.Path("gs://b/sounds") / name).write_bytes((folder / name).read_bytes())
    names = [CLIP, "gs://b/sounds/other.flac", "none.wav", "gs://b/secret.wav", "../secret.wav"]
    lines = records.write_lines(folder / "set.jsonl", [swift(audio=name) for name in names])
    rows = records.write_parquet(folder / "set.parquet", [swift()])
    for file in (lines, rows):
        (epath.Path("gs://b") / file.name).write_bytes(file.read_bytes())
    options = ["--audio", "gs://b/sounds", "--report", "gs://b/page.html", "--json", "--max-bad-share", 0.5]
    for _ in range(2):  # the second page takes the place of the first
        code, out, _ = run(capsys, "gs://b/set.jsonl", "gs://b/set.parquet", *options)
    assert code == 0
    assert [bad["where"] for bad in json.loads(out)["bad_records"]] == [f"gs://b/set.jsonl:{i}" for i in (3, 4, 5)]
    assert Elements(epath.Path("gs://b/page.html").read_text()).tags["audio"] == 3


@pytest.mark.parametrize("argv, reason", [
    (["none.jsonl"], "none.jsonl: no such file"),
    (["empty.jsonl"], "no records in it"),
    (["set.jsonl", "--audio", "nowhere"], "nowhere: no such folder"),
    (["set.jsonl", "--tokenizer", "nowhere"], "nowhere: no such file; a checkpoint folder"),
    (["set.jsonl", "--max-bad-share", "7"], "--max-bad-share: expected a share between 0 and 1, found 7.0"),
    (["set.jsonl", "--limit", "0"], "--limit: expected a number of records, found 0"),
    (["set.jsonl", "--report", "nowhere/page.html"], "--report: nowhere/page.html: expected a file in a folder"),
])  # fmt: skip
def test_mistakes_are_one_line(folder, capsys, monkeypatch, argv, reason):
    monkeypatch.chdir(folder)
    records.write_lines(folder / "set.jsonl", [swift()])
    (folder / "empty.jsonl").touch()
    code, _, err = run(capsys, *argv)
    assert code == 2 and err.startswith("stepaudio data: ") and reason in err and err.count("\n") == 1


@pytest.mark.skipif(any(map(importlib.util.find_spec, ("gcsfs", "tensorflow"))), reason="the library is here")
def test_a_bucket_without_its_library(folder, capsys):
    path = records.write_lines(folder / "set.jsonl", [swift()])
    for argv in (["gs://bucket/set.jsonl"], [path, "--audio", "gs://bucket"]):
        code, _, err = run(capsys, *argv)
        assert code == 2 and "gcsfs" in err and err.count("\n") == 1


class Elements(HTMLParser):
    """The tags of a page with their attributes, its words, and what its players would play."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.words, self.played = "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self.played += [value for name, value in attrs if (tag, name) == ("audio", "src")]

    def handle_data(self, data):
        self.words += data


EVIL = '</p></style><script>alert(1)</script><img src=x onerror="alert(2)">"\'><b>'


def test_no_word_of_a_record_becomes_markup(folder):
    clip = {"bytes": (folder / CLIP).read_bytes(), "path": EVIL}

    def lines(word):
        named = {"bytes": base64.b64encode(clip["bytes"]).decode(), "path": word}
        reply = f"<think>{word} thought</think>{word} said"
        told = swift(words=f"<audio>{word} asked", reply=reply, rejected_response=f"{word} worse", tools=f"{word} tool")
        sound = {"array": tone().tolist(), "sampling_rate": 16000, "path": word}
        read = records.chat(audio=sound, reply=f"{word} read")
        return [told, read, swift(role=word), swift(audio=word), {word: 1}, swift(audio=named)]

    pages = {}
    for name, word in {"evil": EVIL, "harmless": "x" * len(EVIL)}.items():
        path = records.write_lines(folder / f"{name}.jsonl", lines(word))
        findings = check([path], small.tokenizer(), max_bad_share=1)
        assert (findings.good, len(findings.bad)) == (2, 4)
        pages[name] = Elements(render_page(findings, word, word))
    assert pages["evil"].tags == pages["harmless"].tags and pages["evil"].tags["script"] == 0
    assert pages["evil"].attributes == pages["harmless"].attributes
    for said in ("asked", "thought", "said", "worse", "tool", "read"):
        assert f"{EVIL} {said}" in pages["evil"].words
    assert f'found "{EVIL}"' in pages["evil"].words


def test_the_page_plays_ten_samples_and_shows_every_bad_record(folder, capsys):
    lines = [swift(id=i) for i in range(20)] + [{"messages": [{"role": "assistant", "content": "quiet"}]}] * 20
    path = records.write_lines(folder / "set.jsonl", [*lines, swift(audio="none.wav"), "{"])
    code, _, _ = run(capsys, path, "--report", folder / "page.html", "--max-bad-share", 0.5)
    page = Elements((folder / "page.html").read_text())
    assert code == 0 and page.tags["article"] == page.tags["audio"] == len(page.played) == AUDIBLE
    for source in page.played:
        head, data = source.split(",")
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32")
        assert head == "data:audio/flac;base64" and rate == 16000 and np.array_equal(samples, tone())
    assert f"{path}:41" in page.words and f"{path}:42" in page.words
    assert sorted(folder.glob("page*")) == [folder / "page.html"]


def test_a_page_of_nothing_good(folder):
    path = records.write_lines(folder / "set.jsonl", ["{"] * 3)
    findings = check([path], small.tokenizer(), max_bad_share=1)
    assert Elements(render_page(findings, "set", "tiny")).tags["article"] == 0


def test_long_clips_and_texts_are_cut_on_the_page(folder):
    soundfile.write(folder / "long.wav", tone(31), 16000)
    path = records.write_lines(folder / "set.jsonl", [swift(audio="long.wav", reply="word " * 5000)])
    page = Elements(render_page(check([path], small.tokenizer()), "set", "tiny"))
    samples, _ = soundfile.read(io.BytesIO(base64.b64decode(page.played[0].split(",")[1])))
    assert len(samples) == 30 * 16000 and "31.00 s, its first 30 s" in page.words
    assert page.words.count("word ") < 1000
