"""What goes in comes out, bit for bit, whatever the layout; what is changed on the way is changed as said."""

import dataclasses
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from checkpoints_convert.from_hf import from_hf
from checkpoints_convert.initialise import SPECIALS, from_parts, with_special_strings
from checkpoints_convert.safetensors_files import DTYPES, Reader, Tensor, Writer
from checkpoints_convert.sinks import split
from checkpoints_convert.sources import HfFolder
from checkpoints_convert.synth import synth
from checkpoints_convert.to_hf import to_hf
from checkpoints_convert.verify import check_manifest, compare
from stepaudio_jax import checkpoints, miniature
from stepaudio_jax.config import ConfigError, StepAudioConfig
from stepaudio_jax.models import hf_names
from stepaudio_jax.text import Tokenizer
from tests.checkpoints_convert.folders import SMALL, assert_same_bits, edit_json, released, tensors


def shard_size(folder, shards: int) -> int:
    """A size that gives so many shards."""
    sizes = HfFolder(folder).tensors
    total = sum(t.nbytes for t in sizes.values())
    limits = [*range(total // (2 * shards), total, 256), total]
    return next(size for size in limits if len(list(split(sizes, size))) == shards)


@pytest.mark.parametrize("shards", [1, 7])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_there_and_back(tmp_path, shape, dtype, shards):
    whole = released(tmp_path / "whole", shape=shape, dtype=dtype)
    limit = shard_size(whole, shards)
    source = released(tmp_path / "hf", shape=shape, dtype=dtype, max_shard_size=limit)
    assert len(list(source.glob("*.safetensors"))) == shards
    from_hf(str(source), tmp_path / "ours")
    to_hf(tmp_path / "ours", tmp_path / "back", max_shard_size=limit)
    assert_same_bits(tensors(source), tensors(tmp_path / "back"))
    assert [f.name for f in sorted(source.iterdir())] == [f.name for f in sorted((tmp_path / "back").iterdir())]
    for file in source.glob("*.safetensors*"):  # the same names, order and index, too
        assert file.read_bytes() == (tmp_path / "back" / file.name).read_bytes()
    assert StepAudioConfig.read(source) == StepAudioConfig.read(tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["architectures"] == ["StepAudio2ForCausalLM"]
    assert compare(str(source), str(tmp_path / "ours")) == []
    assert check_manifest(str(tmp_path / "ours")) == []


@pytest.mark.parametrize("shards", [1, 7])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_parts_there_and_back(tmp_path, dtype, shards):
    released(tmp_path / "one", shape="parts", dtype=dtype)
    limits = {part: shard_size(tmp_path / "one" / part, shards) for part in ("decoder", "encoder")}
    for part, limit in limits.items():
        released(tmp_path / part, shape="parts", dtype=dtype, max_shard_size=limit)
    heads, ears = tmp_path / "decoder" / "decoder", tmp_path / "encoder" / "encoder"
    assert len(list(heads.glob("*.safetensors"))) == len(list(ears.glob("*.safetensors"))) == shards
    from_parts(str(heads), str(ears), tmp_path / "ours", seed=3)
    to_hf(tmp_path / "ours", tmp_path / "back")
    found, decoder, encoder = tensors(tmp_path / "back"), tensors(heads), tensors(ears)
    rows = 1024  # what the decoder's tokenizer has; the special strings' rows come after
    for name, array in decoder.items():
        same = found[name][:rows] if name in ("model.embed_tokens.weight", "lm_head.weight") else found[name]
        assert same.tobytes() == array[: len(same)].tobytes(), name
    renamed = {
        "encoder.conv1.weight": "conv1.weight",
        "encoder.positional_embedding.weight": "embed_positions.weight",
        "encoder.after_norm.bias": "layer_norm.bias",
        "encoder.blocks.1.attn.key.weight": "layers.1.self_attn.k_proj.weight",
        "encoder.blocks.0.attn.out.bias": "layers.0.self_attn.out_proj.bias",
        "encoder.blocks.1.mlp.0.weight": "layers.1.fc1.weight",
        "encoder.blocks.0.mlp_ln.weight": "layers.0.final_layer_norm.weight",
        "encoder.blocks.0.attn_ln.weight": "layers.0.self_attn_layer_norm.weight",
    }
    for ours, theirs in renamed.items():
        assert found[ours].tobytes() == encoder[f"audio_tower.{theirs}"].tobytes()
    assert sum(name.startswith("encoder.") for name in found) == sum(n.startswith("audio_tower.") for n in encoder)
    mean = decoder["lm_head.weight"].astype(np.float64).mean(axis=0)
    new = found["lm_head.weight"][rows:]
    assert len(new) > 6562 and len(found["lm_head.weight"]) % 512 == 0
    np.testing.assert_allclose(new[0].astype(np.float64), mean, atol=1e-3 if dtype == "bf16" else 1e-7)
    assert (new == new[0]).all()
    spread = found["adapter.linear1.weight"].astype(np.float32).std() * np.sqrt(
        found["adapter.linear1.weight"].shape[1]
    )
    assert spread == pytest.approx(1, abs=0.05) and not found["adapter.conv.bias"].any()


def test_decoder_only_is_a_plain_qwen2(tmp_path):
    source = released(tmp_path / "hf")
    from_hf(str(source), tmp_path / "ours")
    to_hf(tmp_path / "ours", tmp_path / "decoder", decoder_only=True)
    expected = {n: a for n, a in tensors(source).items() if n.startswith(("model.", "lm_head."))}
    assert_same_bits(expected, tensors(tmp_path / "decoder"))
    config = StepAudioConfig.read(tmp_path / "decoder")
    assert config.audio_encoder_config is None and config.decoder == StepAudioConfig.read(source).decoder


def test_the_model_holds_what_the_files_say(tmp_path):
    source = released(tmp_path / "hf", dtype="f32")
    from_hf(str(source), tmp_path / "ours")
    model, tokenizer = checkpoints.load(tmp_path / "ours")
    assert tokenizer.vocab_size == 1024
    assert_same_bits(tensors(source), {name: np.asarray(a) for name, a in hf_names.save_state(model).items()})


def test_through_the_trainers_own_save_and_back(tmp_path):
    source = released(tmp_path / "hf")
    from_hf(str(source), tmp_path / "ours")
    model, tokenizer = checkpoints.load(tmp_path / "ours")
    checkpoints.save(tmp_path / "trained", model, tokenizer.backend.to_str())
    assert compare(str(tmp_path / "trained"), str(tmp_path / "ours")) == []
    to_hf(tmp_path / "trained", tmp_path / "back")
    assert_same_bits(tensors(source), tensors(tmp_path / "back"))


def test_dtypes(tmp_path):
    source = released(tmp_path / "hf", dtype="f32")
    from_hf(str(source), tmp_path / "ours", dtype="bf16")
    to_hf(tmp_path / "ours", tmp_path / "back", dtype="f32")
    expected, found = tensors(source), tensors(tmp_path / "back")
    for name, array in expected.items():
        rounded = np.asarray(jnp.asarray(array).astype(jnp.bfloat16).astype(jnp.float32))
        np.testing.assert_array_equal(found[name], rounded)
    assert compare(str(source), str(tmp_path / "ours")) == []  # within rounding
    assert len(compare(str(source), str(tmp_path / "ours"), rtol=1e-4)) > 20
    assert len(compare(str(source), str(tmp_path / "back"))) > 20  # the same type: bit for bit


def test_verify_finds_one_bit(tmp_path):
    source = released(tmp_path / "hf")
    from_hf(str(source), tmp_path / "ours")
    changed = tensors(source)
    name = "model.layers.1.mlp.up_proj.weight"
    changed[name] = changed[name].copy()
    changed[name].view(np.uint16)[3, 5] ^= 1
    save_file(changed, source / "model.safetensors")
    (difference,) = compare(str(source), str(tmp_path / "ours"))
    assert difference.name == name and "1 values" in difference.what and 0 < difference.largest < 1
    changed.pop(name)
    changed["lm_head.weight"] = changed["lm_head.weight"][:-1]
    save_file(changed, source / "model.safetensors")
    found = {d.name: d.what for d in compare(str(source), str(tmp_path / "ours"))}
    assert sorted(found) == ["lm_head.weight", name] and "shape" in found["lm_head.weight"] and "only in" in found[name]


def test_bits_that_compare_equal_are_still_different(tmp_path):
    source = released(tmp_path / "hf", dtype="f32")
    changed = tensors(source)
    changed["model.norm.weight"] = np.zeros_like(changed["model.norm.weight"])
    save_file(changed, source / "model.safetensors")
    other = released(tmp_path / "other", dtype="f32")
    changed["model.norm.weight"] = -changed["model.norm.weight"]
    save_file(changed, other / "model.safetensors")
    assert [d.name for d in compare(str(source), str(other))] == ["model.norm.weight"]


def test_a_manifest_notices_damage(tmp_path):
    from_hf(str(released(tmp_path / "hf")), tmp_path / "ours")
    edit_json(tmp_path / "ours" / "manifest.json", lambda m: m["tensors"]["lm_head.weight"].update(xxh3_128="0" * 32))
    assert [d.name for d in check_manifest(str(tmp_path / "ours"))] == ["lm_head.weight"]


def test_layers_are_chunked_one_by_one_by_converter_and_trainer(tmp_path):
    from stepaudio_jax.checkpoints.layout import CHUNK_BYTES, PARAMS, open_arrays

    wide = (*SMALL, "text_config.hidden_size=512", "text_config.intermediate_size=3072", "text_config.vocab_size=9216")
    from_hf(str(released(tmp_path / "hf", overrides=wide, dtype="f32")), tmp_path / "ours")
    model, tokenizer = checkpoints.load(tmp_path / "ours")
    checkpoints.save(tmp_path / "trained", model, tokenizer.backend.to_str())
    for folder in ("ours", "trained"):
        arrays = open_arrays(checkpoints.resolve(tmp_path / folder) / PARAMS)
        assert arrays["decoder.lm_head"].chunk_layout.read_chunk.shape != arrays["decoder.lm_head"].shape
        for name, array in arrays.items():
            chunk = array.chunk_layout.read_chunk.shape
            assert np.prod(chunk) * array.dtype.numpy_dtype.itemsize <= CHUNK_BYTES
            assert "layers" not in name or chunk[0] == 1, (folder, name, chunk)


def test_sizes_that_nothing_divides(tmp_path):
    odd = (*SMALL, "text_config.vocab_size=10007", "text_config.intermediate_size=4099", "text_config.hidden_size=258")
    source = released(tmp_path / "hf", overrides=odd, dtype="f32")
    from_hf(str(source), tmp_path / "ours")
    model, _ = checkpoints.load(tmp_path / "ours")
    assert_same_bits(tensors(source), {name: np.asarray(a) for name, a in hf_names.save_state(model).items()})
    to_hf(tmp_path / "ours", tmp_path / "back")
    assert_same_bits(tensors(source), tensors(tmp_path / "back"))


TYPES = st.sampled_from([*DTYPES.values()])
SHAPES = st.lists(st.integers(1, 7), max_size=3).map(tuple)


@settings(max_examples=40)
@given(st.dictionaries(st.text("abc.", min_size=1, max_size=8), st.tuples(TYPES, SHAPES), min_size=1, max_size=6))
def test_our_files_are_the_librarys(tmp_path_factory, about):
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, (dtype, shape) in about.items()}
    writer = Writer(path, {name: Tensor(a.dtype, a.shape) for name, a in arrays.items()})
    for name, array in reversed(arrays.items()):
        for row in range(Tensor(array.dtype, array.shape).rows):
            writer.write(name, row, array[row : row + 1] if array.shape else array.reshape(1))
    writer.sync()
    writer.close()
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert_same_bits(arrays, {name: file.get_tensor(name) for name in arrays})
    save_file(arrays, path)
    reader = Reader(path)
    read = {name: reader.read(name, 0, t.rows).reshape(t.shape) for name, t in reader.tensors.items()}
    assert_same_bits(arrays, read)


def test_special_strings_get_the_released_ids():
    """On a vocabulary of Qwen2.5's size: 151,643 entries and 22 special ones."""
    import tokenizers

    vocab = {f"w{i}": i for i in range(151_643)}
    old = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="w0"))
    old.add_special_tokens(["<|endoftext|>", *(f"<|s{i}|>" for i in range(21))])
    assert old.get_vocab_size() == 151_665
    new = with_special_strings(old)
    assert all(new.token_to_id(text) == wanted for text, wanted in SPECIALS.items())
    assert new.get_vocab_size() == 158_258 and old.get_vocab_size() == 151_665
    Tokenizer(new)


def test_a_tokenizer_that_renumbers_is_refused(tmp_path):
    released(tmp_path / "parts", shape="parts")
    (tmp_path / "other").mkdir()
    other = miniature.build_tokenizer(1024, samples=50).to_str().replace('"tones"', '"tonez"')
    (tmp_path / "other" / "tokenizer.json").write_text(other)
    with pytest.raises(ValueError, match="not an extension of the decoder's tokenizer"):
        from_parts(str(tmp_path / "parts/decoder"), str(tmp_path / "parts/encoder"), tmp_path / "x",
                   tokenizer=tmp_path / "other")  # fmt: skip


def test_parts_can_be_overwritten(tmp_path):
    for seed in (0, 1):
        released(tmp_path / "parts", shape="parts", seed=seed, overwrite=True)
    with pytest.raises(ValueError, match=r"decoder: exists already.*encoder: exists already"):
        released(tmp_path / "parts", shape="parts")


def test_synth_is_the_same_for_a_seed_and_keeps_every_override(tmp_path):
    first, second = released(tmp_path / "a", seed=5), released(tmp_path / "b", seed=5, max_shard_size=50_000)
    assert_same_bits(tensors(first), tensors(second))
    assert tensors(released(tmp_path / "c", seed=6))["lm_head.weight"].tobytes() != (
        tensors(first)["lm_head.weight"].tobytes()
    )
    config = StepAudioConfig.read(first)
    assert (config.decoder.hidden_size, config.audio.llm_dim, config.audio.n_audio_state) == (64, 64, 32)
    for wrong in (
        "text_config.hidden=3",
        "hidden_size=3",
        "text_config.hidden_size=many",
        "text_config.hidden_size=1.5",
        "x",
    ):
        with pytest.raises(ConfigError, match="expected"):
            synth(tmp_path / "d", overrides=[wrong])
    assert not (tmp_path / "d").exists()


def test_params_are_named_by_the_model(tmp_path):
    """A checkpoint of the converter holds exactly the model's parameters: nothing more, nothing less."""
    from stepaudio_jax.checkpoints.layout import PARAMS, open_arrays

    from_hf(str(released(tmp_path / "hf")), tmp_path / "ours")
    model, _ = checkpoints.load(tmp_path / "ours")
    state = nnx.state(model, nnx.Param)
    names = {".".join(map(str, key)) for key, _ in nnx.to_flat_state(state)}
    assert names == set(open_arrays(checkpoints.resolve(tmp_path / "ours") / PARAMS))
    assert all(leaf.dtype == ml_dtypes.bfloat16 for _, leaf in nnx.to_flat_state(state))
    assert dataclasses.asdict(model.config.decoder)["hidden_size"] == 64
