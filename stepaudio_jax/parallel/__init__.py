"""Meshes, sharding rules, the collectives between shards, multi-host start-up, and what each chip can do."""

from stepaudio_jax.parallel.mesh import AXES, MeshError, make_mesh
from stepaudio_jax.parallel.program import Program
from stepaudio_jax.parallel.rules import ShardingError, ShardingRules

__all__ = ["AXES", "MeshError", "Program", "ShardingError", "ShardingRules", "make_mesh"]
