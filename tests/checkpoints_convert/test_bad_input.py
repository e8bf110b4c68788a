"""Every problem at once, before anything is written, in words; exit code 2."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints_convert.from_hf import from_hf, resolve
from checkpoints_convert.sources import ConversionError
from checkpoints_convert.to_hf import to_hf
from checkpoints_convert.transfer import destination_problems
from stepaudio_jax import checkpoints, cli
from tests.checkpoints_convert.folders import edit_json, released, tensors


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return released(tmp_path_factory.mktemp("hf") / "hf", max_shard_size=250_000)


@pytest.fixture
def source(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "hf")


def problems(source, tmp_path, **options) -> list[str]:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConversionError) as caught:
        from_hf(str(source), tmp_path / "dst", **options)
    assert sorted(tmp_path.iterdir()) == before  # nothing was written
    return caught.value.problems


def rewrite(source, change):
    """Changes the tensors of the first shard."""
    file = sorted(source.glob("*.safetensors"))[0]
    arrays = {n: a for n, a in tensors(source).items() if json.loads(
        (source / "model.safetensors.index.json").read_text())["weight_map"][n] == file.name}  # fmt: skip
    change(arrays)
    save_file(arrays, file)


def test_a_missing_shard(source, tmp_path):
    (source / sorted(source.glob("*.safetensors"))[1].name).unlink()
    (found,) = problems(source, tmp_path)  # and not a line for each tensor in it
    assert "no such shard, though model.safetensors.index.json names it" in found


def test_a_truncated_shard(source, tmp_path):
    file = sorted(source.glob("*.safetensors"))[0]
    os.truncate(file, file.stat().st_size - 7)
    found = problems(source, tmp_path)
    assert f"{file}: truncated" in found[0]
    os.truncate(file, 5)
    assert f"{file}: truncated" in problems(source, tmp_path)[0]
    file.write_bytes(b"{" * 100)
    assert f"{file}: truncated or not a safetensors file" in problems(source, tmp_path)[0]
    file.write_bytes((2).to_bytes(8, "little") + b"[]")
    assert "has no encoder.conv1.weight" in problems(source, tmp_path)[0]


def test_tensors_that_share_bytes(source, tmp_path):
    file = sorted(source.glob("*.safetensors"))[0]
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["encoder.conv1.bias"]["data_offsets"] = header["encoder.conv2.bias"]["data_offsets"]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert "overlaps another tensor" in problems(source, tmp_path)[0]


def test_a_wrong_shape_a_missing_and_an_unknown_tensor_at_once(source, tmp_path):
    def change(arrays):
        names = list(arrays)
        arrays["encoder.conv1.wieght"] = arrays.pop("encoder.conv1.weight")
        other = next(name for name in names if arrays.get(name) is not None and arrays[name].ndim == 2)
        arrays[other] = np.ascontiguousarray(arrays[other][:-1])

    rewrite(source, change)
    edit_json(
        source / "model.safetensors.index.json",
        lambda i: i["weight_map"].update({"encoder.conv1.wieght": i["weight_map"].pop("encoder.conv1.weight")}),
    )
    found = " | ".join(problems(source, tmp_path))
    assert "missing encoder.conv1.weight" in found
    assert "unknown encoder.conv1.wieght (did you mean encoder.conv1.weight?)" in found
    assert "expected shape (" in found


def test_an_index_that_lies(source, tmp_path):
    index = source / "model.safetensors.index.json"
    edit_json(index, lambda i: i["weight_map"].update({"lm_head.weight": sorted(i["weight_map"].values())[0]}))
    assert "has no lm_head.weight" in problems(source, tmp_path)[0]
    edit_json(index, lambda i: i["weight_map"].update({"lm_head.weight": "../../etc/passwd"}))
    assert "not a safetensors file of this folder" in problems(source, tmp_path)[0]
    index.write_text("[]")
    assert "not an index of shards" in problems(source, tmp_path)[0]


def test_another_architecture_and_no_tokenizer_and_an_existing_destination(source, tmp_path):
    edit_json(source / "config.json", lambda c: c.update(architectures=["LlamaForCausalLM"]))
    (source / "tokenizer.json").unlink()
    (tmp_path / "dst").mkdir()
    found = problems(source, tmp_path)
    assert len(found) == 3
    assert 'found "LlamaForCausalLM"' in found[0]
    assert "tokenizer.json: no such file" in found[1] and "--tokenizer" in found[1]
    assert "dst: exists already" in found[2] and "--overwrite" in found[2]


def test_pickled_weights_are_refused(source, tmp_path):
    for file in source.glob("*.safetensors*"):
        file.unlink()
    assert "no *.safetensors in it" in problems(source, tmp_path)[0]
    (source / "pytorch_model-00001-of-00002.bin").write_bytes(b"\x80\x04")
    assert "pickled weights (pytorch_model-00001-of-00002.bin), which run code" in problems(source, tmp_path)[0]


def test_types_no_released_weight_has(source, tmp_path):
    rewrite(source, lambda arrays: arrays.update({"encoder.conv1.bias": arrays["encoder.conv1.bias"].astype(np.int8)}))
    assert "encoder.conv1.bias is I8; expected one of BF16, F16, F32" in problems(source, tmp_path)[0]


def test_layers_of_two_types_need_a_choice(source, tmp_path):
    name = "encoder.blocks.0.attn.query.weight"

    def change(arrays):
        arrays[name] = arrays[name].astype(np.float32)

    rewrite(source, change)
    (found,) = problems(source, tmp_path)
    assert "encoder.layers.query.kernel: layers of types bfloat16, float32; choose one with --dtype" in found
    from_hf(str(source), tmp_path / "dst", dtype="f32")
    assert checkpoints.load(tmp_path / "dst")[0].encoder.layers.query.kernel.dtype == np.float32


def test_only_a_part(tmp_path):
    parts = released(tmp_path / "parts", shape="parts")
    found = problems(parts / "decoder", tmp_path)
    assert "only the decoder of a model; give --decoder" in found[0]


def test_nothing_but_a_checkpoint_is_overwritten(source, tmp_path):
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "thesis.txt").write_text("years of work")
    (found,) = problems(source, tmp_path, overwrite=True)
    assert "is no checkpoint" in found and (tmp_path / "dst" / "thesis.txt").exists()
    for inside in (source, tmp_path):
        with pytest.raises(ConversionError, match="holds the source"):
            from_hf(str(source), inside, overwrite=True)
    assert (source / "config.json").exists()


def test_too_little_disk(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    (found,) = problems(source, tmp_path)
    assert "needs 0.00 GB, the disk has 0.00 GB free" in found


def test_no_permission(source, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("this user may read and write everything")
    os.chmod(source, 0)
    try:
        assert "no permission to read" in problems(source, tmp_path)[0]
    finally:
        os.chmod(source, 0o755)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(ConversionError, match="no permission to write in this folder"):
        from_hf(str(source), closed / "dst")


def test_permissions_are_asked_for(tmp_path, monkeypatch):
    """What a user who may not sees, for those of us who may."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConversionError, match="no permission to read this folder"):
        resolve(str(tmp_path))
    assert "no permission to write" in destination_problems(checkpoints.resolve(tmp_path / "x"), 1, overwrite=False)[0]


def test_places_that_are_none(source, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConversionError, match="no such folder, and not a hub id"):
        from_hf(str(tmp_path / "nothing"), tmp_path / "dst")
    with pytest.raises(ConversionError, match="expected a folder"):
        from_hf(str(source / "config.json"), tmp_path / "dst")
    with pytest.raises(ConversionError, match="is a file"):
        from_hf(str(source), source / "config.json" / "dst")
    with pytest.raises(checkpoints.CheckpointError, match="no such checkpoint"):
        to_hf(tmp_path / "nothing", tmp_path / "dst")


def test_the_command_names_every_problem_and_returns_2(source, tmp_path, capsys):
    edit_json(source / "config.json", lambda c: c.update(architectures=["LlamaForCausalLM"]))
    (source / "tokenizer.json").unlink()
    assert cli.main(["convert", "from-hf", str(source), str(tmp_path / "dst")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "stepaudio convert from-hf: 2 problems:" and len(lines) == 3
    assert cli.main(["convert", "from-hf", str(tmp_path / "nothing"), str(tmp_path / "dst")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["convert", "from-hf", str(source)]) == 2
    assert "expected SRC DST" in capsys.readouterr().err


def test_verify_returns_1_and_inspect_counts(pristine, tmp_path, capsys):
    from_hf(str(pristine), tmp_path / "ours")
    assert cli.main(["convert", "verify", str(pristine), str(tmp_path / "ours")]) == 0
    other = released(tmp_path / "other", seed=1)
    capsys.readouterr()
    assert cli.main(["convert", "verify", str(other), str(tmp_path / "ours")]) == 1
    assert "tensors differ" in capsys.readouterr().out
    counted = sum(array.size for array in tensors(pristine).values())
    for folder in (pristine, tmp_path / "ours"):
        assert cli.main(["convert", "inspect", str(folder)]) == 0
        assert f"{counted:,}" in capsys.readouterr().out


def test_inspect_counts_the_released_total(capsys):
    """33.487 billion parameters in 1,264 tensors, 66.97 GB (MODEL.md §1)."""
    from checkpoints_convert.inspection import tensors_of

    found = tensors_of("33b")
    assert len(found) == 1264
    assert sum(t.nbytes for t in found.values()) == pytest.approx(66.97e9, rel=1e-4)
    sums = {prefix: sum(t.nbytes // 2 for n, t in found.items() if n.startswith(prefix))
            for prefix in ("encoder.", "adapter.", "model.layers.")}  # fmt: skip
    assert sums["encoder."] == pytest.approx(0.637e9, rel=1e-3) and sums["adapter."] == pytest.approx(18e6, rel=0.05)
    assert sums["model.layers."] == pytest.approx(31.207e9, rel=1e-4)
    assert cli.main(["convert", "inspect", "33b"]) == 0
    assert "33,487,033,600" in capsys.readouterr().out


def test_a_hub_id_is_downloaded_by_the_hubs_library(source, tmp_path, monkeypatch):
    asked = {}

    def download(name, *, revision, allow_patterns):
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        snapshot = tmp_path / "cache" / "snapshots" / "0123abcd"
        snapshot.parent.mkdir(parents=True)
        return str(shutil.copytree(source, snapshot))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    from_hf("stepfun-ai/Step-Audio-R1", tmp_path / "ours", revision="main")
    assert asked["name"] == "stepfun-ai/Step-Audio-R1" and asked["revision"] == "main"
    assert "*.safetensors" in asked["patterns"] and not any("py" in p or "bin" in p for p in asked["patterns"])
    manifest = json.loads((tmp_path / "ours" / "manifest.json").read_text())
    assert manifest["source"] == "stepfun-ai/Step-Audio-R1" and manifest["revision"] == "0123abcd"
