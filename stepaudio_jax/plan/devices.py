"""A slice's devices without the slice: the TPU compiler describes any of them on a CPU host."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax

from stepaudio_jax.parallel.chips import Topology


class NoCompilerError(ValueError):
    """The TPU compiler is not installed here."""


def devices(topology: Topology) -> list[Any]:
    """Devices to compile for; for `cpu` this machine's first.

    Raises:
      NoCompilerError: libtpu is not installed.
      ValueError: the compiler knows no such slice.
    """
    if topology.chip is None:
        return jax.local_devices(backend="cpu")[:1]
    if importlib.util.find_spec("libtpu") is None:
        raise NoCompilerError(
            f"{topology}: planning for TPUs needs their compiler, libtpu (Linux on x86-64); "
            'install it with pip install "stepaudio-jax[tpu]", or plan for --topology=cpu'
        )
    # Asked before libtpu is loaded: it then looks for no TPU, and several processes may plan at once.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    more = {"num_slices": topology.slices} if topology.slices > 1 else {}
    with quiet():
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **more)
    return list(described.devices)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the TPU compiler's warnings of a missing TPU from the terminal; after an error they are shown."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException as error:
            os.dup2(kept, 2)
            if not isinstance(error, KeyboardInterrupt) and "RESOURCE_EXHAUSTED" not in str(error):
                said.seek(0)
                os.write(2, said.read()[-4000:])
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
