"""Checkpoint folders: what is written reads back exactly; what is broken is refused by name."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from checkpoints_convert.sources import ConversionError
from checkpoints_convert.to_hf import to_hf
from stepaudio_jax import checkpoints
from stepaudio_jax.checkpoints import CheckpointError
from stepaudio_jax.checkpoints.layout import open_arrays
from stepaudio_jax.config import ConfigError
from stepaudio_jax.inference.session import sampling_defaults
from stepaudio_jax.text import TokenizerError
from tests import small


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "small"
    checkpoints.save(path, small.model(), small.tokenizer().backend.to_str())
    return path


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def test_it_reads_back_exactly(saved):
    model, tokenizer = checkpoints.load(saved)
    assert model.config == small.config()
    assert tokenizer.encode("tones") == small.tokenizer().encode("tones")
    ours, theirs = (nnx.to_pure_dict(nnx.state(m, nnx.Param)) for m in (small.model(), model))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_it_reads_in_another_dtype(saved):
    model, _ = checkpoints.load(saved, dtype=jnp.bfloat16)
    state, whole = (nnx.to_pure_dict(nnx.state(m, nnx.Param)) for m in (model, small.model()))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), state, whole)


def test_no_file_tells_where_it_was_written(saved):
    for file in saved.rglob("*"):
        assert not file.is_file() or str(saved.parent).encode() not in file.read_bytes(), file


def test_an_existing_folder_is_kept(saved):
    with pytest.raises(CheckpointError, match="exists already"):
        checkpoints.save(saved, small.model(), "{}")


def test_an_interrupted_save_leaves_no_checkpoint(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("orbax.checkpoint.StandardCheckpointer.save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(tmp_path / "small", small.model(), "{}")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoints.load(tmp_path / "small")
    monkeypatch.undo()
    checkpoints.save(tmp_path / "small", small.model(), small.tokenizer().backend.to_str())
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_overwriting_keeps_the_old_one_until_the_new_is_whole(folder, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("orbax.checkpoint.StandardCheckpointer.save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(folder, small.model(seed=1), "{}", overwrite=True)
    monkeypatch.undo()
    assert checkpoints.load(folder)[0].config == small.config()


def test_no_such_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"no such checkpoint.*tiny"):
        checkpoints.load(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="found a file"):
        checkpoints.load(tmp_path / "file")


def test_without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer.json: no such file"):
        checkpoints.load(folder)


def test_a_tokenizer_without_audio_patch(folder):
    text = (folder / "tokenizer.json").read_text().replace("<audio_patch>", "<other_patch>")
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match="has no <audio_patch>"):
        checkpoints.load(folder)


def test_a_tokenizer_larger_than_the_embedding(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 300
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="has 512 entries, the model's embedding only 300"):
        checkpoints.load(folder)


def test_a_config_that_does_not_fit_the_arrays(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 50
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"3 problems: .*down_proj.kernel has shape \(2, 48, 32\)"):
        checkpoints.load(folder)


def test_broken_config(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.json: not JSON"):
        checkpoints.load(folder)


def test_missing_and_damaged_arrays(folder):
    for file in sorted((folder / "params").rglob("*"), key=lambda f: -f.stat().st_size):
        if file.is_file() and file.stat().st_size > 10_000:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.load(folder)
    shutil.rmtree(folder / "params")
    with pytest.raises(CheckpointError, match="has no weights"):
        checkpoints.load(folder)


@pytest.mark.parametrize("layers", [1, 3])
def test_no_layer_is_lost_or_made_up_on_the_way_out(folder, layers):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=rf"q_proj.kernel has shape \(2, 32, 32\), .* asks for \({layers}, "):
        to_hf(folder, folder.parent / "hf")


def pipe(file):
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def link(file):
    file.unlink(missing_ok=True)
    file.symlink_to("/etc/passwd")


@pytest.mark.parametrize("make", [pipe, link])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "params/_METADATA", "params/manifest.ocdbt", "run.json"]
)
def test_pipes_and_links_in_place_of_files(folder, make, name):
    make(folder / name)
    with pytest.raises((CheckpointError, ConfigError, TokenizerError), match=rf"{name}: .*(a named pipe|outside its)"):
        checkpoints.load(folder)
    with pytest.raises((CheckpointError, ConfigError, TokenizerError, ConversionError), match=rf"{name}: "):
        to_hf(folder, folder.parent / "hf")
    assert not (folder.parent / "hf").exists()


@pytest.mark.parametrize("name", ["config.json", "run.json", "progress.json"])
@pytest.mark.parametrize("text", ['{"a":' * 100_000, "[]", "{}", "null"])
def test_descriptions_that_are_none(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises((CheckpointError, ConfigError), match=rf"{name}|architectures"):
        checkpoints.load(folder)


def test_arrays_described_without_end(folder):
    (folder / "params" / "_METADATA").write_text('{"tree_metadata":' + "[" * 100_000)
    with pytest.raises(CheckpointError, match=r"params: cannot be read|params/_METADATA"):
        open_arrays(checkpoints.resolve(folder) / "params")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a":' * 100_000, "nested more than 64 deep"),
        ("[]", "expected a JSON object"),
        ('{"temperature": "hot"}', "temperature: expected a number"),
        ('{"temperature": NaN}', "temperature: expected a number"),
        ('{"top_k": 2.5}', "top_k: expected an integer"),
        ('{"top_k": true}', "top_k: expected an integer"),
        ('{"top_p": [1]}', "top_p: expected a number"),
        ('{"top_p": 0}', "top_p: expected a positive number"),
        ('{"max_new_tokens": -1}', "max_new_tokens: expected a positive number"),
        ('{"max_new_tokens": 1e9}', "max_new_tokens: expected an integer"),
        ('{"repetition_penalty": Infinity}', "repetition_penalty: expected a number from"),
        ('{"do_sample": "false"}', "do_sample: expected true or false"),
    ],
)
def test_generation_defaults_that_are_none(folder, text, message):
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"generation_config.json: .*{message}"):
        sampling_defaults(folder)


def test_generation_defaults(folder):
    values = {"temperature": 1, "top_k": 20, "top_p": None, "eos_token_id": 1, "transformers_version": "5.0"}
    (folder / "generation_config.json").write_text(json.dumps(values))
    assert (sampling_defaults(folder).temperature, sampling_defaults(folder).top_k) == (1, 20)
    (folder / "generation_config.json").write_text(json.dumps(values | {"do_sample": False}))
    assert sampling_defaults(folder).temperature == 0
