"""Records as other tools write them, whole and broken, for the tests of this folder."""

import base64
import json
from pathlib import Path

import numpy as np
import soundfile

from stepaudio_jax.text import Audio

CLIP = "clip.wav"


def tone(seconds: float = 0.5) -> np.ndarray:
    """Exact in 16 bit."""
    return (np.round(np.sin(np.arange(int(16000 * seconds)) / 20) * 8000) / 32768).astype(np.float32)


def write_sounds(folder: Path) -> None:
    """A good clip, and one of every way to be broken."""
    soundfile.write(folder / CLIP, tone(), 16000, subtype="PCM_16")
    soundfile.write(folder / "other.flac", tone(0.25), 16000, subtype="PCM_16")
    (folder / "truncated.wav").write_bytes((folder / CLIP).read_bytes()[:-4000])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "words.wav").write_bytes(b"not a sound at all")
    soundfile.write(folder / "short.wav", tone(0.01), 16000, subtype="PCM_16")
    soundfile.write(folder / "nan.wav", np.where(np.arange(8000) == 17, np.nan, tone()), 16000, subtype="FLOAT")


def swift(audio=CLIP, role="user", words="<audio>\nHow many?", reply="Two.", **columns) -> dict:
    messages = [{"role": role, "content": words}, {"role": "assistant", "content": reply}]
    return {"messages": messages, "audios": [audio], **columns}


def sharegpt(audio=CLIP, role="human", words="<audio>How many?", reply="Two.", **columns) -> dict:
    conversations = [{"from": role, "value": words}, {"from": "gpt", "value": reply}]
    return {"conversations": conversations, "audios": [audio], **columns}


def chat(audio=CLIP, role="user", words="How many?", reply="Two.", **columns) -> dict:
    parts = [{"type": "audio", "audio": audio}, {"type": "text", "text": words.removeprefix("<audio>")}]
    if words.count("<audio>") > 1:  # a second place, for which there is no clip
        parts = [{"type": "audio"}, *parts]
    answer = {"role": "assistant", "content": [{"type": "text", "text": reply}]}
    return {"messages": [{"role": role, "content": parts}, answer], **columns}


def verl(audio=CLIP, role="user", words="<audio>How many?", reply="Two.", **columns) -> dict:
    prompt = [{"role": role, "content": words}, {"role": "assistant", "content": reply}]
    return {"prompt": prompt, "audios": [audio], "reward_model": {"ground_truth": "2"}, **columns}


MAKE = {"swift": swift, "sharegpt": sharegpt, "chat": chat, "verl": verl}
COLUMN = {"swift": "messages", "sharegpt": "conversations", "chat": "messages", "verl": "prompt"}


def _without_reply(name: str) -> dict:
    record = MAKE[name]()
    record[COLUMN[name]].pop()
    return record


FAULTS = {  # what is wrong: (the record, made for a format by its name; what the reason must say)
    "missing file": (lambda name: MAKE[name](audio="none.wav"), r'"none\.wav": no such file under'),
    "truncated sound": (lambda name: MAKE[name](audio="truncated.wav"), r"truncated\.wav: truncated, 4000 bytes"),
    "empty sound": (lambda name: MAKE[name](audio="empty.wav"), r"empty\.wav: the file is empty"),
    "no sound": (lambda name: MAKE[name](audio="words.wav"), r"words\.wav: not a sound file"),
    "too short": (lambda name: MAKE[name](audio="short.wav"), r"short\.wav: 0\.0100 s of sound"),
    "not a number": (lambda name: MAKE[name](audio="nan.wav"), r"nan\.wav: 1 samples are not finite"),
    "bad base64": (lambda name: MAKE[name](audio="data:audio/wav;base64,@@@@"), "not base64"),
    "leads out": (lambda name: MAKE[name](audio="../clip.wav"), r'"\.\./clip\.wav" leads out of its folder'),
    "absolute": (lambda name: MAKE[name](audio="/etc/hostname"), r"/etc/hostname, outside of"),
    "a URL": (lambda name: MAKE[name](audio="http://x.org/a.wav"), "is a URL; nothing is fetched"),
    "wrong type": (lambda name: MAKE[name]() | {COLUMN[name]: "How many?"}, "expected a list, found text"),
    "no messages": (lambda name: MAKE[name]() | {COLUMN[name]: []}, "expected at least one message"),
    "message of text": (lambda name: MAKE[name]() | {COLUMN[name]: ["How many?"]}, r"\[0\]: expected an object"),
    "unknown role": (lambda name: MAKE[name](role="robot"), r'\[0\]\.\w+: expected one of .*, found "robot"'),
    "places and clips": (lambda name: MAKE[name](words="<audio><audio>How?"), "<audio> in the text but"),
    "no reply": (_without_reply, "no assistant turn, nothing to train on"),
    "empty reply": (lambda name: MAKE[name](reply=" "), r"\[1\]\.\w+: expected text or audio, found an empty"),
    "open think": (lambda name: MAKE[name](reply="<think>Two"), "<think> is opened and never closed"),
    "no columns": (lambda name: {"text": "How many?"}, "no known format; expected the column messages .*found text"),
}

BROKEN_LINES = {  # lines that are no record in any format
    '{"messages": [': "not JSON",
    "[1, 2]": "expected a JSON object, found list",
    '{"messages": [], "x": {"a": 1, "a": 2}}': 'the key "a" stands twice in one object',
    '{"messages": "\\ud800"}': "half of a surrogate pair",
}


def in_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def write_lines(path: Path, lines) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def write_parquet(path: Path, rows) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
    return path


def write_array_record(path: Path, records) -> Path:
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record if isinstance(record, bytes) else json.dumps(record).encode())
    writer.close()
    return path


def same(ours, theirs) -> bool:
    """Whether two conversations are one and the same, their sound sample by sample."""

    def plain(conversation):
        turns = [
            (t.role, t.think, t.loss, dict(t.extra), [None if isinstance(p, Audio) else p for p in t.parts])
            for t in conversation.turns
        ]
        return turns, conversation.tools, dict(conversation.extra)

    sounds = zip(ours.audio, theirs.audio, strict=True)
    return plain(ours) == plain(theirs) and all(np.array_equal(a.samples, b.samples) for a, b in sounds)
