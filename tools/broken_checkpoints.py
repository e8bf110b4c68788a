"""Small valid checkpoint folders, and the changes that break them or write them otherwise: for flood_checkpoints.py.

Each change edits a folder by a random number generator and says what must come of converting it.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from checkpoints_convert.from_hf import from_hf
from checkpoints_convert.peft import to_peft
from checkpoints_convert.synth import synth
from stepaudio_jax import checkpoints
from stepaudio_jax.models import LoraConfig, add_lora

OVERRIDES = [f"text_config.{name}" for name in ("num_hidden_layers=2", "hidden_size=64", "intermediate_size=96")]
OVERRIDES += [f"audio_encoder_config.{name}" for name in ("n_audio_layer=2", "n_audio_state=32", "n_audio_head=2")]
OVERRIDES += ["audio_encoder_config.adapter_state=48"]
WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
REFUSED, EQUAL, EITHER = "refused", "equal", "either"


def make_folders(root: Path) -> None:
    """The valid folders that cases are copies of."""
    synth(root / "model", overrides=OVERRIDES)
    synth(root / "shards", overrides=OVERRIDES, max_shard_size=100_000)
    synth(root / "tied", overrides=[*OVERRIDES, "text_config.tie_word_embeddings=true"])
    synth(root / "parts", overrides=OVERRIDES, shape="parts")
    from_hf(str(root / "model"), root / "ours")
    model, tokenizer = checkpoints.load(root / "ours")
    lora = LoraConfig(rank=2, targets=("q_proj", "down_proj"))
    add_lora(model, lora, nnx.Rngs(0))
    checkpoints.save_adapters(root / "adapters", model, lora, tokenizer.backend.to_str(), base=root / "ours")
    to_peft(root / "adapters", root / "peft")


WRONG = (None, [], [1], {"a": 1}, "x", "64", True, math.nan, math.inf, -math.inf, -1, 0, 2.5, 10**9, 10**400, [[[[1]]]])
"""What no size may be."""
FINE = {  # of WRONG, what another field may be
    "rope_theta": (2.5, 10**9),
    "eos_token_id": (None, [1], 0, 10**9),
    "pad_token_id": (None, 0, 10**9),
    "head_dim": (None,),
    "rope_scaling": (None,),
    "tie_word_embeddings": (),
    "rms_norm_eps": (),
}
TEXT = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
TEXT += ("num_key_value_heads", "num_attention_groups", "max_position_embeddings", "rms_norm_eps", "rope_theta")
TEXT += ("rope_scaling", "tie_word_embeddings", "eos_token_id", "pad_token_id", "hidden_act")
AUDIO = ("n_mels", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer", "llm_dim", "adapter_state")
AUDIO += ("kernel_size", "adapter_stride")
JSONS = ("config.json", "generation_config.json", "tokenizer.json", "special_tokens_map.json", INDEX)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    change(values)
    path.write_text(json.dumps(values))


def config_value(rng: random.Random, folder: Path) -> str:
    """A value of another type or out of range."""
    part = rng.choice(("text_config", "audio_encoder_config"))
    name = rng.choice(TEXT if part == "text_config" else AUDIO)
    value = rng.choice([value for value in WRONG if repr(value) not in map(repr, FINE.get(name, ()))])
    top = name.endswith("token_id")
    edit(folder / "config.json", lambda c: (c if top else c[part]).update({name: value}))
    return REFUSED


def config_size(rng: random.Random, folder: Path) -> str:
    """A size that a model may have, but not this one."""
    part, names = rng.choice((("text_config", TEXT[:4]), ("audio_encoder_config", (*AUDIO[:3], *AUDIO[4:7]))))
    name, most = rng.choice(names), 1 << 20

    def change(values):
        now = values[part][name]
        values[part][name] = rng.choice([size for size in (now * 2, now + 1, 1024, most, most - 1) if size != now])

    edit(folder / "config.json", change)
    return REFUSED


def config_drop(rng: random.Random, folder: Path) -> str:
    """A size that is not there, or a part."""
    part, names = rng.choice((("text_config", TEXT[:5]), ("audio_encoder_config", AUDIO[:6])))
    name = rng.choice((*names, None))
    edit(folder / "config.json", lambda c: c[part].pop(name) if name else c.update({part: rng.choice(WRONG)}))
    return REFUSED


def json_text(rng: random.Random, folder: Path) -> str:
    """JSON that is deep, cut off, of another kind, huge or no text."""
    file = folder / rng.choice(JSONS)
    kinds = (b'{"a":' * 100_000, b"[" * 100_000, b'{"weight_map": {"a": ', b"[1]", b'"x"', b"null", b"\xff{", b"")
    file.write_bytes(rng.choice(kinds))
    if rng.random() < 0.2:
        with file.open("r+b") as opened:
            opened.truncate(1 << 40)
    return REFUSED


def special_file(rng: random.Random, folder: Path) -> str:
    """A pipe, a link that leaves the folder, or a folder in place of a file."""
    file = folder / rng.choice((*JSONS, WEIGHTS, "merges.txt", "chat_template.jinja"))
    file.unlink(missing_ok=True)
    secret = folder.parent / "secret"
    secret.write_text("{}")
    kind = rng.randrange(5)
    if kind == 0:
        os.mkfifo(file)
    elif kind == 1:
        file.mkdir()
    else:
        file.symlink_to(("/dev/zero", secret, "gone")[kind - 2])
    return REFUSED


def header(rng: random.Random, folder: Path) -> str:
    """A field of a tensor in the header of a file."""
    file = rng.choice(sorted(folder.glob("*.safetensors")))
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    values = json.loads(data[8 : 8 + length])
    name = rng.choice([name for name in values if name != "__metadata__"])
    field = rng.choice(("dtype", "shape", "data_offsets", None, "more"))
    if field == "shape":
        values[name]["shape"] = rng.choice([[value] for value in WRONG] + [[1] * 100, 3, [2**40, 0], [10**9, 10**9]])
    elif field is None:
        values[name] = rng.choice(WRONG)
    else:
        values[name][field] = rng.choice((*WRONG, [0, 0], [-4, 0], ["0", "4"], [0, math.inf]))
    text = json.dumps(values).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return REFUSED


def broken_bytes(rng: random.Random, folder: Path) -> str:
    """A file that is cut off, longer than it should be, or has other bytes where its header is."""
    file = rng.choice(sorted(folder.glob("*.safetensors")))
    data = bytearray(file.read_bytes())
    kind = rng.randrange(4)
    if kind == 0:
        data = data[: rng.choice((0, 5, 8, rng.randrange(len(data))))]
    elif kind == 1:
        data += bytes(rng.randrange(1, 100))
    elif kind == 2:
        data[:8] = rng.choice((0, 1, len(data), 1 << 40, (1 << 64) - 1)).to_bytes(8, "little")
    else:
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(8, 200)] = rng.randrange(256)
    file.write_bytes(data)
    return EITHER if kind == 3 else REFUSED  # of the header's bytes, some are only its notes or blanks


def other_tensors(rng: random.Random, folder: Path) -> str:
    """A tensor that is missing, unknown, of another type or shape."""
    file = rng.choice(sorted(folder.glob("*.safetensors")))
    found = load_file(file)
    name = rng.choice(list(found))
    kind = rng.randrange(6)
    if kind == 0:
        found["of_another_model.weight" if rng.random() < 0.5 else f"{name}\n\x1b[31m[/]"] = found.pop(name)
    elif kind == 1:
        found.pop(name)
    elif kind == 2:
        types = (np.int8, np.int64, np.float64, np.bool_, np.uint8, ml_dtypes.float8_e4m3fn)
        found[name] = found[name].astype(rng.choice(types))
    elif kind == 3:
        found[name] = np.ascontiguousarray(found[name].reshape(-1)[:-1])
    elif kind == 4:
        found[name] = found[name][None]
    else:
        found |= {f"unknown.{number}.{'x' * rng.randrange(300)}": np.zeros(1, np.float32) for number in range(3000)}
    save_file(found, file)
    return REFUSED if kind < 5 or not (folder / INDEX).exists() else EQUAL  # an index says what counts


def index(rng: random.Random, folder: Path) -> str:
    """An index that says otherwise than the shards."""
    values = json.loads((folder / INDEX).read_text())
    names = values["weight_map"]
    name = rng.choice(list(names))
    kind = rng.randrange(6)
    if kind == 0:
        names[name] = rng.choice(("../../etc/passwd", "/etc/passwd", "gone.safetensors", "", "x.bin", None, 3, [1], {}))
    elif kind == 1:
        names.pop(name)
    elif kind == 2:
        names[f"{name}.other"] = names[name]
    elif kind == 3:
        names[name] = next(file for file in names.values() if file != names[name])
    elif kind == 4:
        values["weight_map"] = rng.choice((None, [], "x", 3, True))
    else:
        (folder / names[name]).unlink()
    (folder / INDEX).write_text(json.dumps(values))
    return REFUSED


def equal_layout(rng: random.Random, folder: Path) -> str:
    """What means the same, though it is written otherwise."""
    kind = rng.randrange(5)
    found = load_file(folder / WEIGHTS)
    if kind == 0:
        name = rng.choice(("model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq"))
        save_file(found | {name: np.ones(8, rng.choice((np.float64, np.float32, np.float16)))}, folder / WEIGHTS)
    elif kind == 1:
        (folder / INDEX).write_text(rng.choice(('{"weight_map": {}}', '{"weight_map": {}, "metadata": {}}')))
    elif kind == 2:
        save_file({"a.lora_A.weight": np.ones((2, 2), np.float32)}, folder / ADAPTER)
    elif kind == 3:
        (folder / WEIGHTS).rename(folder / "other.safetensors")
        (folder / WEIGHTS).symlink_to("other.safetensors")
    else:
        extra = {"_name_or_path": "x", "use_cache": True, "rope_parameters": None, "new": [math.inf, {"a": None}]}
        edit(folder / "config.json", lambda c: c["text_config"].update(extra))
    return EQUAL


def tied(rng: random.Random, folder: Path) -> str:
    """Both matrices of a tied model: one, or not."""
    found = load_file(folder / WEIGHTS)
    kind = rng.randrange(4)
    other = found[EMBEDDING].copy()
    if kind == 0:
        at = rng.randrange(other.size)
        other.reshape(-1)[at] = other.reshape(-1)[at] + 1
    elif kind == 1:
        other = np.ascontiguousarray(other[: rng.randrange(len(other))])
    elif kind == 2:
        other = other.astype(np.float32)
    else:
        found.pop(EMBEDDING)
    save_file(found | {HEAD: other}, folder / WEIGHTS)
    return REFUSED if kind < 2 else EQUAL


STARTS = ("pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga", "eva", "mica", "new", 1, [], {"a": 1}, 0.0)
SWITCHES = ("use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "arrow_config", "kasa_config", "eva_config", "new")
SWITCHES += ("rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "alora_invocation_tokens")


def adapter(rng: random.Random, folder: Path) -> str:
    """An adapter that is no plain LoRA, or of other tensors."""
    kind = rng.randrange(6)
    if kind == 0:
        edit(folder / "adapter_config.json", lambda c: c.update(init_lora_weights=rng.choice(STARTS)))
    elif kind == 1:
        value = rng.choice((True, 1, 0, "x", [1], {"a": 1}, 2.5, math.nan))
        edit(folder / "adapter_config.json", lambda c: c.update({rng.choice(SWITCHES): value}))
    elif kind == 2:
        name = rng.choice(("r", "lora_alpha"))
        wrong = [value for value in WRONG if name == "r" or value not in (2.5, 10**9)]
        edit(folder / "adapter_config.json", lambda c: c.update({name: rng.choice(wrong)}))
    elif kind == 3:
        text = rng.choice((b'{"a":' * 100_000, b"[]", b"{", b"\xff", b"{}", b'{"peft_type": "IA3"}'))
        (folder / "adapter_config.json").write_bytes(text)
    elif kind == 4:
        file = folder / rng.choice(("adapter_config.json", ADAPTER))
        file.unlink()
        os.mkfifo(file) if rng.random() < 0.5 else file.symlink_to("/etc/passwd")
    else:
        found = load_file(folder / ADAPTER)
        name = rng.choice(list(found))
        matrix = found.pop(name)
        if rng.random() < 0.7:
            new = rng.choice((name.replace("lora_A", "lora_magnitude_vector"), f"x.{name}", "x", name))
            found[new] = matrix[..., :-1].copy() if new == name else matrix
        save_file(found, folder / ADAPTER)
    return EITHER if kind == 5 else REFUSED


def checkpoint(rng: random.Random, folder: Path) -> str:
    """One of our own checkpoints, broken."""
    name = rng.choice(("config.json", "run.json", "tokenizer.json", "params/_METADATA", "params/manifest.ocdbt"))
    kind = rng.randrange(4)
    if kind < 2:
        (folder / name).unlink(missing_ok=True)
    if kind == 0:
        os.mkfifo(folder / name)
    elif kind == 1:
        (folder / name).symlink_to("/etc/passwd")
    elif kind == 2:
        (folder / name).write_bytes(rng.choice((b'{"a":' * 100_000, b"[]", b"{", b"\xff", b"")))
    else:
        edit(folder / "config.json", lambda c: c["text_config"].update(num_hidden_layers=rng.choice((1, 3, 10**9))))
    return EITHER if name == "tokenizer.json" and kind == 2 else REFUSED  # to-hf copies it as a text


def described(rng: random.Random, folder: Path) -> str:
    """Adapters of our own whose description is not theirs."""
    file = folder / "lora.json"
    kind = rng.randrange(4)
    if kind == 0:
        name = rng.choice(("rank", "alpha", "targets", "modules", "rslora", "new"))
        wrong = [value for value in WRONG if value is not True or name != "rslora"]
        wrong = [value for value in wrong if name != "alpha" or value not in (2.5, 10**9)]
        edit(file, lambda c: c["lora"].update({name: rng.choice(wrong)}))
    elif kind == 1:
        others = ({"rank": 3}, {"targets": ["q_proj"]}, {"modules": ["encoder"]})
        edit(file, lambda c: c["lora"].update(rng.choice(others)))
    elif kind == 2:
        name, value = rng.choice(("modules", "base", "fingerprint")), rng.choice((3, None, "x", [1]))
        edit(file, lambda c: c.update({name: value}))
    else:
        mark = checkpoints.fingerprint(checkpoints.resolve(folder))
        edit(file, lambda c: c.update(base=str(folder), fingerprint=mark))
    return REFUSED


def part(rng: random.Random, folder: Path) -> str:
    """One of the two halves of a new model, broken."""
    half = folder / rng.choice(("decoder", "encoder"))
    kind = rng.randrange(4)
    if kind == 0:
        return header(rng, half)
    if kind == 1:
        return broken_bytes(rng, half)
    file = half / rng.choice(("config.json", WEIGHTS))
    file.unlink()
    if kind == 2:
        os.mkfifo(file)
    else:
        file.symlink_to("/etc/passwd")
    return REFUSED


class Family(NamedTuple):
    """A change, and the folders that it is made to."""

    change: Callable[[random.Random, Path], str]
    folders: tuple[str, ...]


FAMILIES = (
    Family(config_value, ("model", "shards")),
    Family(config_size, ("model",)),
    Family(config_drop, ("model",)),
    Family(json_text, ("model",)),
    Family(special_file, ("model",)),
    Family(header, ("model", "shards")),
    Family(broken_bytes, ("model", "shards")),
    Family(other_tensors, ("model", "shards")),
    Family(index, ("shards",)),
    Family(equal_layout, ("model",)),
    Family(tied, ("tied",)),
    Family(adapter, ("peft",)),
    Family(checkpoint, ("ours",)),
    Family(described, ("adapters",)),
    Family(part, ("parts",)),
)
