"""Restored onto any mesh with the same values, each process reading about its share."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from checkpoints_convert.from_hf import from_hf
from checkpoints_convert.synth import synth
from stepaudio_jax import checkpoints
from tests import processes, small

RULES = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


def placement(devices, shape):
    """fsdp and tensor over a mesh of so many devices; an axis that does not divide stays whole."""
    mesh = Mesh(np.array(devices).reshape(shape), ("fsdp", "tensor"))

    def place(axes):
        names, used = [], set()
        for axis in axes:
            name = RULES.get(axis)
            names.append(name if name not in used else None)
            used.add(name)
        return NamedSharding(mesh, PartitionSpec(*names))

    return place


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 2), (4, 2), (2, 4)])
def test_equal_values_on_any_mesh(tmp_path, shape):
    model = small.model(num_attention_heads=8, num_key_value_heads=4, head_dim=4)
    checkpoints.save(tmp_path / "it", model, small.tokenizer().backend.to_str())
    devices = jax.devices()[: shape[0] * shape[1]]
    found, _ = checkpoints.load(tmp_path / "it", placement=placement(devices, shape))
    for (key, ours), (_, theirs) in zip(
        nnx.to_flat_state(nnx.state(model, nnx.Param)), nnx.to_flat_state(nnx.state(found, nnx.Param)), strict=True
    ):
        np.testing.assert_array_equal(ours[...], theirs[...], str(key))
        assert theirs[...].sharding.device_set == set(devices)
    kernel = found.decoder.layers.gate_proj.kernel[...]
    assert kernel.addressable_shards[0].data.size * len(devices) == kernel.size


PROGRAM = """
import json, sys
number, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
import numpy as np, tensorstore
from flax import nnx
from stepaudio_jax import checkpoints
from tests.checkpoints.test_placement import placement
def bytes_read():
    metrics = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in metrics for value in metric["values"])
before = bytes_read()
model, _ = checkpoints.load(folder, placement=placement(jax.devices(), (2, 4)))
read = bytes_read() - before
state = [leaf[...] for _, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))]
total = float(jax.jit(lambda arrays: sum(abs(a.astype("float32")).sum() for a in arrays))(state))
print(json.dumps({"read": read, "total": total, "bytes": sum(a.nbytes for a in state)}))
"""


def test_each_process_reads_its_share(tmp_path):
    """Two processes of four devices, over gloo; arrays large enough to lie in several chunks."""
    wide = ["text_config.hidden_size=1024", "text_config.intermediate_size=4096", "text_config.num_attention_heads=8",
            "text_config.num_key_value_heads=4", "text_config.vocab_size=8192", "audio_encoder_config.n_audio_layer=1",
            "audio_encoder_config.n_audio_state=64", "audio_encoder_config.n_audio_head=4"]  # fmt: skip
    synth(tmp_path / "hf", overrides=wide, dtype="f32")
    from_hf(str(tmp_path / "hf"), tmp_path / "ours")
    found = [json.loads(printed.splitlines()[-1]) for printed in processes.run(PROGRAM, tmp_path / "ours")]
    model, _ = checkpoints.load(tmp_path / "ours")
    state = [leaf[...] for _, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    expected = sum(float(np.abs(np.asarray(a)).sum(dtype=np.float64)) for a in state)
    whole = sum(a.nbytes for a in state)
    print([f"{one['read'] / whole:.3f} of {whole / 1e6:.0f} MB" for one in found])
    for one in found:
        assert one["total"] == pytest.approx(expected, rel=1e-4) and one["bytes"] == whole
        assert 0.45 * whole < one["read"] < 0.6 * whole
