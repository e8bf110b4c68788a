"""The mesh builder and the rules: shapes, and mistakes explained before anything is compiled."""

import jax
import pytest
from jax.sharding import PartitionSpec

from stepaudio_jax.config import StepAudioConfig
from stepaudio_jax.parallel import AXES, MeshError, ShardingError, ShardingRules, distributed, make_mesh, mesh


def test_what_is_left_goes_to_the_free_axis():
    made = make_mesh({"fsdp": -1, "tensor": 2})
    assert made.axis_names == AXES and dict(made.shape) == {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}
    assert make_mesh({}, jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            {"fsdp": 3},
            "fsdp 3 makes 3, found 8 devices; the nearest that fits is data 1 x fsdp 8 x context 1 x tensor 1",
        ),
        ({"fsdp": -1, "tensor": 3}, "8 devices do not divide by 3; the nearest that fits is .* fsdp 4 .* tensor 2"),
        ({"fsdp": -1, "tensor": -1}, "fsdp and tensor are both -1"),
        ({"model": 8}, "unknown axis model; expected some of data, fsdp, context, tensor"),
        ({"fsdp": 0}, "fsdp is 0; expected a positive number, or -1"),
    ],
)
def test_meshes_that_do_not_multiply_out(axes, message):
    with pytest.raises(MeshError, match=message):
        make_mesh(axes)


def test_slices_divide_the_data_axis():
    with pytest.raises(MeshError, match="data is 1; with 2 slices, which it spans, expected a multiple of 2"):
        make_mesh({"fsdp": 8}, slices=2)
    with pytest.raises(MeshError, match="8 devices do not divide into 3 slices"):
        make_mesh({"data": 3, "fsdp": -1}, slices=3)
    made = make_mesh({"data": 4, "tensor": 2}, slices=2)
    assert [[d.id for d in row.flat] for row in made.devices] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_specs():
    rules = ShardingRules(make_mesh({"fsdp": 2, "context": 2, "tensor": 2}))
    assert rules.spec(("layers", "embed", "mlp")) == PartitionSpec(None, ("fsdp", "context"), "tensor")
    assert rules.spec(("batch", "length")) == PartitionSpec("fsdp", "context")
    assert rules.spec(("layers", "embed")) == PartitionSpec(None, None), "a vector is kept whole"
    assert rules.spec(("layers", "heads")) == PartitionSpec(None, "tensor"), "unless its computation is split"
    serve = ShardingRules(rules.mesh, "serve")
    assert serve.spec(("layers", "embed", "mlp")) == PartitionSpec(None, None, "tensor")
    assert ShardingRules(make_mesh({}, jax.devices()[:1])).spec(("embed", "mlp")) == PartitionSpec(None, None)


def test_fsdp_in_phases(monkeypatch):
    monkeypatch.setattr(mesh, "torus_side", lambda _: 2)
    made = make_mesh({"fsdp": 8})
    rules = ShardingRules(made)
    assert rules.mesh.shape["fsdp"] == 4 and rules.mesh.shape["fsdp_minor"] == 2
    assert list(rules.mesh.devices.flat) == list(made.devices.flat)
    assert rules.spec(("embed", "mlp")) == PartitionSpec(("fsdp", "fsdp_minor"), None)
    assert rules.size(rules.split("batch")) == 8


@pytest.mark.parametrize(
    ("axes", "preset", "sizes", "message"),
    [
        ({"tensor": 8}, "8b", {}, "num_attention_heads 28 does not divide over tensor 8; the most that fits is 7"),
        ({"fsdp": 2, "tensor": 4}, "8b", {}, None),
        ({"fsdp": 8}, "33b", {"batch": ("data.batch_size", 12)}, "12 does not divide over fsdp 8 = 8 shards; .* is 16"),
        ({"data": 2, "fsdp": 4}, "33b", {"batch": ("data.batch_size", 1)}, "data 2 x fsdp 4 = 8 shards; .* is 8"),
        ({"context": 8}, "33b", {"length": ("tokens", 1001)}, "tokens 1001 does not divide over context 8"),
    ],
)
def test_sizes_that_do_not_divide(axes, preset, sizes, message):
    rules, config = ShardingRules(make_mesh(axes)), StepAudioConfig.preset(preset)
    if message is None:
        rules.check(config, sizes)
        return
    with pytest.raises(ShardingError, match=message):
        rules.check(config, sizes)


def test_names_that_are_not_in_the_table():
    rules = ShardingRules(make_mesh({"fsdp": 8}))
    with pytest.raises(ShardingError, match='logical axis "embd": not in the table of train; did you mean embed'):
        rules.spec(("embd", "mlp"))
    with pytest.raises(ShardingError, match='strategy: expected one of train, serve, found "fast"'):
        ShardingRules(rules.mesh, "fast")


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "3"}, "slurm"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a-0.svc,a-1.svc", "TPU_WORKER_ID": "1"}, "gke"),
        ({"TPU_WORKER_HOSTNAMES": "a-0.svc", "MEGASCALE_COORDINATOR_ADDRESS": "a-0.svc"}, "gke"),
        ({"COLAB_RELEASE_TAG": "r", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
    ],
)
def test_clusters_are_told_by_their_environment(environment, kind):
    assert distributed.detect(environment) == kind


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"STEPAUDIO_PROCESSES": "2"}, "STEPAUDIO_COORDINATOR, STEPAUDIO_PROCESS: missing"),
        ({"COORDINATOR": "here", "PROCESSES": "2", "PROCESS": "0"}, 'COORDINATOR: expected "host:port", found "here"'),
        ({"COORDINATOR": "a:1", "PROCESSES": "two", "PROCESS": "0"}, "expected numbers, found 'two' and '0'"),
        ({"COORDINATOR": "a:1", "PROCESSES": "2", "PROCESS": "2"}, "PROCESS: expected a number from 0 to 1, found 2"),
    ],
)
def test_settings_that_do_not_fit(environment, message):
    given = {f"STEPAUDIO_{k.removeprefix('STEPAUDIO_')}": v for k, v in environment.items()}
    with pytest.raises(distributed.StartError, match=message):
        distributed.start(environment=given)
