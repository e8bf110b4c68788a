"""What lies in memory during an update, as the planner is told: nothing compiled, only shapes."""

import jax
import pytest

from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.rl.programs import programs
from stepaudio_jax.training import read_config


def beside(*more: str) -> dict[str, int]:
    """Bytes by name of all that the policy's gradients are computed beside, themselves included."""
    given = [f"--config.{each}" for each in ("rl.rows=8", "rl.sound_rows=8", "mesh.fsdp=8", *more)]
    program = programs(read_config("configs/rlhf_tiny.py", given), make_mesh({"fsdp": 8}))["policy gradients"]
    leaves = {name: jax.tree.leaves([program.abstract_args[i] for i in at]) for name, at in program.groups.items()}
    return {name: sum(leaf.size * leaf.dtype.itemsize for leaf in found) for name, found in leaves.items()}


def test_a_reference_and_a_judge_take_memory_where_there_is_one():
    alone = beside("rl.kl.weight=0", "rl.baseline=critic")
    assert "reference" not in alone and "judge weights" not in alone and alone["critic parameters"] > 0
    held = beside("rl.baseline=critic", "compute_dtype=bfloat16")
    assert held["reference"] == held["policy parameters"] / 2  # in what it is computed in
    moving = beside("compute_dtype=bfloat16", "rl.reference.every=5")
    assert moving["reference"] == moving["policy parameters"] and "critic parameters" not in moving
    judged = beside("rl.kl.weight=0", "reward_model.judge=checkpoint", "reward_model.references=reference")
    assert judged["judge weights"] == judged["engine weights"] and judged["judge cache"] == judged["engine cache"]
    assert judged["reference"] == pytest.approx(judged["policy parameters"])
