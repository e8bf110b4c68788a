"""Folders as they come from elsewhere: equal layouts are read, hostile files refused in one line, by the command."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints_convert.from_hf import from_hf
from checkpoints_convert.initialise import from_parts
from checkpoints_convert.verify import compare
from stepaudio_jax import checkpoints, cli
from stepaudio_jax.config import StepAudioConfig
from tests.checkpoints_convert.folders import SMALL, edit_json, released, tensors

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TIED = "text_config.tie_word_embeddings=true"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return released(tmp_path_factory.mktemp("hf") / "hf", dtype="f32")


@pytest.fixture
def source(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "hf")


def header_of(source, header: bytes, data: bytes = b""):
    (source / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + data)


def one_tensor(**about):
    return lambda source: header_of(source, json.dumps({"a": about}).encode(), bytes(4))


def pipe(name):
    def change(source):
        (source / name).unlink(missing_ok=True)
        os.mkfifo(source / name)

    return change


def link(name, target="/etc/passwd"):
    def change(source):
        (source / name).unlink(missing_ok=True)
        (source / name).symlink_to(target)

    return change


def text(name, content):
    return lambda source: (source / name).write_text(content)


def config(section, **values):
    return lambda source: edit_json(source / "config.json", lambda c: (c[section] if section else c).update(values))


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HOSTILE = {
    "config: a list": (text("config.json", "[]"), "config.json: expected a JSON object"),
    "config: deep": (text("config.json", '{"a":' * 100_000), "config.json: JSON nested more than 64 deep"),
    "config: cut off": (text("config.json", '{"architectures": ['), "config.json: not JSON"),
    "config: a size is null": (config("text_config", vocab_size=None), "vocab_size: expected an integer, found None"),
    "config: a number is text": (config("text_config", rms_norm_eps="x"), 'rms_norm_eps: expected a number, found "x"'),
    "config: a billion layers": (config("text_config", num_hidden_layers=10**9), "expected a number from 1 to 1,024"),
    "config: no end": (config("text_config", rope_theta=float("inf")), "rope_theta: expected a number from"),
    "config: a pipe": (pipe("config.json"), "config.json: expected a file, found a named pipe"),
    "config: a link": (link("config.json"), "config.json: a link to /etc/passwd, outside its folder"),
    "config: a device": (link("config.json", "/dev/zero"), "config.json: a link to /dev/zero, outside its folder"),
    "header: deep": (lambda s: header_of(s, b"[" * 100_000), "its header: JSON nested more than 64 deep"),
    "header: a shape without end": (one_tensor(**F32 | {"shape": [float("inf")]}), "a: shape: expected an integer"),
    "header: a shape of text": (one_tensor(**F32 | {"shape": ["1"]}), "a: shape: expected an integer"),
    "header: a shape of truth": (one_tensor(**F32 | {"shape": [True]}), "a: shape: expected an integer"),
    "header: a negative shape": (one_tensor(**F32 | {"shape": [-1]}), "a: shape: expected a number from 0"),
    "header: no list": (one_tensor(**F32 | {"shape": 1}), "a: shape: expected a list"),
    "header: offsets that go back": (one_tensor(**F32 | {"data_offsets": [4, 0]}), "the first is beyond the second"),
    "header: offsets of a fraction": (one_tensor(**F32 | {"data_offsets": [0, 4.0]}), "data_offsets: expected an int"),
    "header: a type that is none": (one_tensor(**F32 | {"dtype": ["F32"]}), "a: dtype: expected text"),
    "header: a key more": (one_tensor(**F32, more=1), "a: expected dtype, shape and data_offsets"),
    "header: no tensor": (lambda s: header_of(s, b'{"a": [1]}'), "a: expected dtype, shape and data_offsets"),
    "header: a name twice": (
        lambda s: header_of(s, b'{"a": %b, "a": %b}' % ((json.dumps(F32).encode(),) * 2), bytes(4)),
        "its header: a is given twice",
    ),
    "weights: a pipe": (pipe(WEIGHTS), "model.safetensors: expected a file, found a named pipe"),
    "weights: a link": (link(WEIGHTS), "model.safetensors: a link to /etc/passwd, outside its folder"),
    "weights: a link to nothing": (link(WEIGHTS, "gone"), "model.safetensors: a link to gone, which is not there"),
    "index: deep": (text(INDEX, "[" * 100_000), "not an index of shards (JSON nested more than 64 deep)"),
    "index: no names": (text(INDEX, '{"weight_map": [1]}'), "not an index of shards (weight_map: expected an object"),
    "index: files that are none": (text(INDEX, '{"weight_map": {"a": 1}}'), "names 1, which is not a safetensors file"),
    "index: a pipe": (pipe(INDEX), f"{INDEX}: not an index of shards (expected a file, found a named pipe"),
    "index: a link": (link(INDEX), "a link to /etc/passwd, outside its folder"),
    "texts: a link": (link("special_tokens_map.json"), "special_tokens_map.json: a link to /etc/passwd, outside"),
    "texts: a pipe": (pipe("chat_template.jinja"), "chat_template.jinja: expected a file, found a named pipe"),
    "texts: no text": (lambda s: (s / "merges.txt").write_bytes(b"\xff\xfe"), "merges.txt: not UTF-8 text"),
    "generation: deep": (text("generation_config.json", '{"a":' * 100_000), "generation_config.json: JSON nested"),
    "generation: a list": (text("generation_config.json", "[1]"), "generation_config.json: expected a JSON object"),
    "tokenizer: a pipe": (pipe("tokenizer.json"), "tokenizer.json: expected a file, found a named pipe"),
    "tokenizer: a link": (link("tokenizer.json"), "tokenizer.json: a link to /etc/passwd, outside its folder"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_folders_are_refused(source, tmp_path, capsys, change, message):
    change(source)
    assert cli.main(["convert", "from-hf", str(source), str(tmp_path / "dst")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == (1 if ": 2 problems" not in said[0] else 3), said  # a tokenizer is read as a text, too
    assert message in said[-1] and "Traceback" not in said[-1] and all(len(line) < 400 for line in said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_names_of_tensors_neither_break_lines_nor_steer_the_terminal(source, capsys, tmp_path):
    save_file(tensors(source) | {"a\nb\x1b[31m[/]": np.ones(1, np.float32)}, source / WEIGHTS)
    assert cli.main(["convert", "inspect", str(source)]) == 0
    assert "\x1b[31m" not in capsys.readouterr().out
    assert cli.main(["convert", "from-hf", str(source), str(tmp_path / "dst")]) == 2
    said = capsys.readouterr().err
    assert r"unknown a b\x1b[31m[/]" in said and "\x1b" not in said


def test_the_hubs_cache_is_read(source, tmp_path):
    repository = tmp_path / "models--owner--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(source.iterdir())):
        shutil.copy(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    from_hf(str(snapshot), tmp_path / "ours")
    assert compare(str(source), str(tmp_path / "ours")) == []
    assert json.loads((tmp_path / "ours" / "manifest.json").read_text())["revision"] == "0123abcd"


def same_model(first, second):
    assert compare(str(first), str(second)) == []
    assert StepAudioConfig.read(first) == StepAudioConfig.read(second)


def test_what_transformers_leaves_out_is_left_out(pristine, source, tmp_path, capfd):
    """Buffers of the rotary embedding, an index that names nothing, and an adapter beside the model."""
    found = tensors(pristine)
    found["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float64)  # of a type that no weight has
    found["model.rotary_emb.inv_freq"] = np.ones(8, np.float16)
    save_file(found, source / WEIGHTS)
    (source / INDEX).write_text('{"metadata": {}, "weight_map": {}}')
    save_file({"x.lora_A.weight": np.ones((2, 2), np.float32)}, source / "adapter_model.safetensors")
    assert cli.main(["convert", "from-hf", str(source), str(tmp_path / "ours")]) == 0
    assert capfd.readouterr().err.count("adapter_model.safetensors is no part of the model and left out") == 1
    same_model(pristine, tmp_path / "ours")
    same_model(source, tmp_path / "ours")


def test_a_whole_file_goes_before_an_index_of_other_shards(pristine, source, tmp_path):
    (source / INDEX).write_text('{"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}')
    with pytest.warns(UserWarning, match=r"model.safetensors is read, and not the shards"):
        from_hf(str(source), tmp_path / "ours")
    same_model(pristine, tmp_path / "ours")


def test_an_adapter_alone_is_no_model(source, tmp_path, capsys):
    (source / WEIGHTS).rename(source / "adapter_model.safetensors")
    assert cli.main(["convert", "from-hf", str(source), str(tmp_path / "dst")]) == 2
    assert "holds only an adapter (adapter_model.safetensors); from-peft reads it" in capsys.readouterr().err


def test_a_left_over_rope_theta_is_said_once(source, tmp_path, capfd):
    edit_json(
        source / "config.json",
        lambda c: c["text_config"].update(rope_theta=1e4, rope_parameters={"rope_theta": 5e5, "rope_type": "default"}),
    )
    assert cli.main(["convert", "from-hf", str(source), str(tmp_path / "ours")]) == 0
    assert capfd.readouterr().err.count("is left over: rope_parameters says 500000.0, which is used") == 1
    assert StepAudioConfig.read(tmp_path / "ours").decoder.rope_theta == 5e5


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A tied model as released, and the checkpoint that it becomes."""
    folder = tmp_path_factory.mktemp("tied")
    released(folder / "hf", dtype="bf16", overrides=[*SMALL, TIED])
    from_hf(str(folder / "hf"), folder / "ours")
    return folder


def stored(tied, tmp_path, change):
    """The tied model with other tensors."""
    source = shutil.copytree(tied / "hf", tmp_path / "hf")
    found = tensors(source)
    change(found)
    save_file(found, source / WEIGHTS)
    return source


def test_a_tied_model_may_store_both_matrices_if_they_are_one(tied, tmp_path):
    source = stored(tied, tmp_path, lambda found: found.update({HEAD: found[EMBEDDING].astype(np.float32)}))
    from_hf(str(source), tmp_path / "ours")
    for one, two in ((source, tmp_path / "ours"), (tmp_path / "ours", source), (tied / "hf", source)):
        same_model(one, two)


def test_a_tied_model_may_store_it_under_the_other_name(tied, tmp_path):
    source = stored(tied, tmp_path, lambda found: found.update({HEAD: found.pop(EMBEDDING)}))
    from_hf(str(source), tmp_path / "ours")
    same_model(tied / "hf", tmp_path / "ours")
    same_model(source, tmp_path / "ours")


def last_value_changed(matrix):
    other = matrix.copy()
    other[-1, -1] += 1
    return other


@pytest.mark.parametrize("change", [last_value_changed, lambda x: x[:-1].copy(), lambda x: x.T.copy()])
def test_a_tied_model_with_another_output_matrix_is_refused(tied, tmp_path, capsys, change):
    source = stored(tied, tmp_path, lambda found: found.update({HEAD: change(found[EMBEDDING])}))
    assert cli.main(["convert", "from-hf", str(source), str(tmp_path / "dst")]) == 2
    assert f"{HEAD} differs from {EMBEDDING}, though the config says that they are one" in capsys.readouterr().err
    assert not (tmp_path / "dst").exists()


def test_tied_at_the_top_only(tied, tmp_path):
    source = shutil.copytree(tied / "hf", tmp_path / "hf")
    config = source / "config.json"
    edit_json(config, lambda c: c.update(tie_word_embeddings=c["text_config"].pop("tie_word_embeddings")))
    from_hf(str(source), tmp_path / "ours")
    same_model(tied / "hf", tmp_path / "ours")


def test_parts_of_a_new_model_are_looked_at_as_well(tmp_path, capsys):
    parts = released(tmp_path / "parts", shape="parts", overrides=[*SMALL, TIED])
    decoder, encoder = parts / "decoder", parts / "encoder"
    found = tensors(decoder)
    save_file(found | {HEAD: found[EMBEDDING], "model.rotary_emb.inv_freq": np.ones(8, np.float32)}, decoder / WEIGHTS)
    from_parts(str(decoder), str(encoder), tmp_path / "ours")
    assert checkpoints.load(tmp_path / "ours")[0].config.decoder.tie_word_embeddings
    pipe("config.json")(encoder)
    arguments = ["convert", "from-hf", "--decoder", str(decoder), "--encoder", str(encoder), str(tmp_path / "dst")]
    assert cli.main(arguments) == 2
    assert "config.json: expected a file, found a named pipe" in capsys.readouterr().err
