"""Faults of parallelism: the rules, the mesh, the collectives."""

from tests.mutants import Mutant

RULES, MESH, COLLECTIVES = (f"stepaudio_jax/parallel/{name}.py" for name in ("rules", "mesh", "collectives"))
OF_MESH, NUMERICS = "tests/parallel/test_mesh.py", "tests/parallel/test_numerics.py"
ONE_MESH = f"{NUMERICS}::test_a_train_step[{{'fsdp': 2, 'context': 2, 'tensor': 2}}]"

MUTANTS = (
    Mutant(
        "parameters are whole along context",
        RULES,
        '"embed": Rule(stored=("fsdp", "fsdp_minor", "context"))',
        '"embed": Rule(stored=("fsdp", "fsdp_minor"))',
        (f"{OF_MESH}::test_specs",),
        wiring=True,
    ),
    Mutant(
        "the serving table is the trainer's",
        RULES,
        '_ENCODER | {"embed": Rule()},',
        '_ENCODER | {"embed": Rule(stored=("fsdp", "fsdp_minor", "context"))},',
        (f"{OF_MESH}::test_specs",),
        wiring=True,
    ),
    Mutant(
        "vectors are stored in parts",
        RULES,
        "return [() if vector or name is None else",
        "return [() if name is None else",
        (f"{OF_MESH}::test_specs",),
    ),
    Mutant(
        "heads are not split",
        RULES,
        '"heads": Rule(split=("tensor",)),\n    "kv',
        '"heads": Rule(),\n    "kv',
        (f"{OF_MESH}::test_specs",),
        wiring=True,
    ),
    Mutant(
        "sizes that do not divide are let through",
        RULES,
        "            if size % (parts := self.size(axes)):",
        "            if (parts := self.size(axes)) < 0:",
        (f"{OF_MESH}::test_sizes_that_do_not_divide",),
    ),
    Mutant(
        "partial sums are not added up",
        COLLECTIVES,
        "return jax.lax.psum(x, axes) if axes else x",
        "return x",
        (ONE_MESH,),
        wiring=True,
    ),
    Mutant(
        "the maximum of the vocabulary is each shard's own",
        COLLECTIVES,
        "return jax.lax.pmax(x, axes) if axes else x",
        "return x",
        (ONE_MESH,),
        wiring=True,
    ),
    Mutant(
        "a row's shards forget each other's sound",
        COLLECTIVES,
        "        axes = tuple(mesh_axis for mesh_axis in axes if mesh_axis not in _split(keep))\n",
        "        axes = ()\n",
        (ONE_MESH,),
        wiring=True,
    ),
    Mutant(
        "what is left goes to no axis",
        MESH,
        "shape[free[0]] = devices // fixed",
        "shape[free[0]] = 1",
        (f"{OF_MESH}::test_what_is_left_goes_to_the_free_axis",),
    ),
    Mutant(
        "slices lie along fsdp",
        MESH,
        'inner = (shape["data"] // slices, *(shape[name] for name in AXES[1:]))',
        'inner = (shape["data"], shape["fsdp"] // slices, *(shape[name] for name in AXES[2:]))',
        (f"{OF_MESH}::test_slices_divide_the_data_axis",),
    ),
)
