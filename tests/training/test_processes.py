"""A run over two processes is the run of one: the trainer, its logs and its checkpoints under several controllers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stepaudio_jax import training
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.training.stage import Stage, prepare
from tests.training import runs

CHANGES = {"steps": 2, "eval_every": 2} | runs.SOUND


@pytest.mark.usefixtures("one_device")
def test_two_processes_train_as_one(tmp_path):
    """Each brings its own rows, with sound."""
    port = runs.free_port()
    both = [runs.start(tmp_path / "two", changes=CHANGES, process=i, port=port) for i in range(2)]
    assert [process.join() or process.exitcode for process in both] == [0, 0]
    training.train(runs.config(**CHANGES), tmp_path / "one", evaluate=runs.look)
    for name in ("loss", "norm"):
        one, two = ([(x["step"], x[name]) for x in runs.lines(tmp_path / run, name)] for run in ("one", "two"))
        assert [step for step, _ in one] == [step for step, _ in two]
        assert [value for _, value in two] == pytest.approx([value for _, value in one], rel=1e-5)
    a, b = (runs.parameters(tmp_path / run / "checkpoint") for run in ("one", "two"))
    assert optax.tree.norm(jax.tree.map(jnp.subtract, a, b)) <= 1e-5 * optax.tree.norm(a)


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("mine", [[0, 1, 2, 3], [2], [1, 3]])
def test_rows_of_one_process_find_their_place(mine, microbatches, monkeypatch):
    """A process that holds some shares of the rows brings just those; its chunks are counted among all chunks."""
    from stepaudio_jax.training.sources import MiniatureSource
    from tests import small

    changes = runs.SOUND | {"data.batch_size": 8 * microbatches, "microbatches": microbatches}
    config = runs.config(**changes)
    stage = prepare(config, make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    per, rows = 2, 8
    assert stage.local_rows() == list(range(rows * microbatches))
    tokenizer = small.tokenizer()
    whole = next(MiniatureSource(config, tokenizer, stage))
    monkeypatch.setattr(Stage, "local_shares", lambda _: mine)
    expected = [m * rows + share * per + i for m in range(microbatches) for share in mine for i in range(per)]
    assert stage.local_rows() == expected
    part = next(MiniatureSource(config, tokenizer, stage))
    placed: dict = {}

    def collect(shape, sharding, piece):
        """What the devices of this process are given, put where they lie."""
        array = np.full(shape, -9)
        for at in sharding.devices_indices_map(shape).values():
            lead = len(shape) - (2 if len(shape) - (microbatches > 1) == 2 else 1)
            start = at[lead].start or 0
            if start // (shape[lead] // 4) in mine:
                array = array.astype(piece(at).dtype) if not np.any(array != -9) else array
                array[at] = piece(at)
        placed[len(placed)] = array
        return array

    monkeypatch.setattr(jax, "make_array_from_callback", collect)
    for found, truth in zip(jax.tree.leaves(stage.place(part)), jax.tree.leaves(whole), strict=True):
        lead = int(microbatches > 1)
        size = truth.shape[lead] // 4
        for share in mine:
            at = (slice(None),) * lead + (slice(share * size, (share + 1) * size),)
            np.testing.assert_array_equal(found[at], truth[at])
