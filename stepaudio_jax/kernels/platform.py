"""Which kind of machine a call is traced for."""

from __future__ import annotations

import jax


def platform() -> str:
    """Of the mesh in use (`jax.set_mesh`), else of this process: "tpu", "gpu" or "cpu".

    So compiling ahead for a TPU, on a machine without one, takes the TPU's kernels.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
