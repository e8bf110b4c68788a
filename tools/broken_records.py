"""Records of every schema that is read, and ways to break them, each by a source of random numbers."""

from __future__ import annotations

import base64
import copy
import json
import random
from typing import Any

CLIP = "clip.wav"


def schemas(sound: bytes) -> dict[str, dict[str, Any]]:
    """A record of every schema, with as much in it as that may have; `sound` is a sound file."""
    inline = base64.b64encode(sound).decode()
    asked = {"role": "user", "content": "<audio>How many?"}
    told = {"role": "assistant", "content": "<think>I hear.</think>Two.", "loss": True}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}
    system = {"role": "system", "content": "Be brief."}
    parts = [
        {"type": "audio", "audio": {"array": [0.1, -0.1] * 400, "sampling_rate": 16000}},
        {"type": "input_audio", "input_audio": {"data": inline, "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{inline}"}},
        {"type": "audio"},
        {"type": "text", "text": "How many?"},
    ]
    calls = [asked, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "2"}, told]
    return {
        "swift": {"messages": [system, asked, told], "audios": [CLIP], "tools": "[{}]", "rejected_response": "One."},
        "swift-rejected": {
            "messages": [asked, told],
            "audios": [CLIP],
            "rejected_messages": [asked, {**told, "content": "1"}],
        },
        "swift-query": {"query": "<audio>Q", "response": "A", "history": [["a", "b"]], "system": "S", "audios": [CLIP]},
        "sharegpt": {
            "conversations": [{"from": "human", "value": "<audio>How many?"}, {"from": "gpt", "value": "Two."}],
            "audios": [CLIP],
            "system": "S",
        },
        "sharegpt-pair": {
            "conversations": [{"from": "human", "value": "How many?"}],
            "chosen": {"from": "gpt", "value": "Two.", "thinking": "I hear."},
            "rejected": {"from": "gpt", "value": "One."},
        },
        "chat": {
            "messages": [{"role": "user", "content": parts}, {**told, "content": "2", "reasoning": "t"}],
            "audio": CLIP,
        },
        "openai": {"messages": calls, "audios": [{"path": CLIP, "bytes": None}], "tools": [{"type": "function"}]},
        "trl": {"prompt": [asked], "completion": [told], "audios": [CLIP]},
        "trl-pair": {"prompt": [asked], "chosen": [told], "rejected": [{**told, "content": "One."}], "audio": CLIP},
        "trl-text": {"prompt": "How many?", "chosen": "Two.", "rejected": "One."},
        "verl": {"data_source": "x", "prompt": [asked, told], "audios": [CLIP], "reward_model": {"ground_truth": "2"}},
    }


WORDS = ["<audio>", "<think>", "</think>", "<|EOT|>", "<audio_patch>", "<tool_call>", "</tool_call>", "\x00", "\ud800",
         "\x1b[2J", "\n", "../", "/etc/passwd", "http://x.org/a.wav", "gs://b/a.wav", "data:audio/wav;base64,", '"',
         "[]", "{}", "null", "é\u0301", "\u202e", "x" * 5000, "assistant", "user", CLIP]  # fmt: skip
NUMBERS = [0, -1, 1, 2**31, 2**63, -(2**63), 10**40, 1e308, float("inf"), float("nan"), 0.5, True, False]


def junk(rng: random.Random, depth: int = 0) -> Any:
    """Any value that JSON has."""
    kind = rng.randrange(6 if depth < 3 else 4)
    if kind == 4:
        return [junk(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 5:
        return {rng.choice(WORDS): junk(rng, depth + 1) for _ in range(rng.randrange(4))}
    return (None, rng.choice(NUMBERS), rng.choice(WORDS), "".join(rng.choices(WORDS, k=3)))[kind]


def broken(rng: random.Random, record: dict[str, Any]) -> dict[str, Any]:
    """A copy of a record with one to three places of it changed."""
    record = copy.deepcopy(record)
    names = sorted({*record, "messages", "chosen", "rejected", "completion", "audio", "kto_tag", "label", "content"})
    for _ in range(rng.randint(1, 3)):
        inside: Any = record
        while True:
            keys = sorted(inside) if isinstance(inside, dict) else range(len(inside))
            key = rng.choice(keys)
            if not isinstance(inside[key], dict | list) or not inside[key] or rng.random() < 0.2:
                break
            inside = inside[key]
        change(rng, inside, key, names)
        if not record:
            return record
    return record


def change(rng: random.Random, inside: Any, key: Any, names: list[str]) -> None:
    """One change to an item of a list, or to a field of an object."""
    kind, value = rng.randrange(8), inside[key]
    if kind == 0:
        del inside[key]
    elif kind == 1 and isinstance(inside, dict):
        inside[rng.choice(names)] = inside.pop(key)
    elif kind == 1:
        inside.extend([value] * often(rng, value))
    elif kind == 2 and isinstance(value, str):
        at = rng.randint(0, len(value))
        inside[key] = value[:at] + rng.choice(WORDS) + value[at:]
    elif kind == 3:
        inside[key] = [value] * often(rng, value)
    elif kind == 4:
        for _ in range(rng.choice([1, 50, 100])):
            value = [value]
        inside[key] = value
    elif kind == 5:
        inside[key] = json.dumps(value, default=str)
    elif kind == 6 and isinstance(inside, dict):
        inside[rng.choice(names)] = copy.deepcopy(value)
    else:
        inside[key] = junk(rng)


def often(rng: random.Random, value: Any) -> int:
    """How many times a value is put; a large one twice at most, so that a record has a few megabytes."""
    return rng.choice([1, 2, 300]) if len(repr(value)) < 20_000 else 2


def turned(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some turned over, cut out, doubled, or put in."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at, kind = rng.randrange(len(out) + 1), rng.randrange(5)
        if kind == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del out[at : at + rng.choice([1, 8, 64, len(out)])]
        elif kind == 2:
            out[at:at] = out[at : at + rng.choice([1, 8, 64])]
        elif kind == 3:
            out[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"])
        else:
            out[at:at] = rng.choice([b'"', b"{", b"}", b"\n", b"\\", b"\xef\xbb\xbf", b"[", b"[" * 10_000, b"," * 50])
    return bytes(out)
