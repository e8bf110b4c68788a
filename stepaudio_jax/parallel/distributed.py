"""Multi-host start-up: every process of a job finds the others before the first computation."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax


class StartError(ValueError):
    """Processes that cannot find each other; the message names the setting and what was expected."""


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    timeout: int = 300,
) -> None:
    """Joins this process to its job, once, before any other use of JAX; alone on a machine there is nothing to do.

    On Cloud TPU VMs (also several slices), GKE and under Slurm, JAX reads the addresses from the machine's metadata or
    the environment. Elsewhere give all three arguments, or STEPAUDIO_COORDINATOR, STEPAUDIO_PROCESSES and
    STEPAUDIO_PROCESS.

    Args:
      coordinator: "host:port" of process 0.
      processes: how many there are.
      process: which one this is, from 0.
      timeout: seconds to wait for the others.

    Raises:
      StartError: some of the three without the others, or a value that is no such thing.
      RuntimeError: the others did not come in time, as JAX words it.
    """
    environment = os.environ if environment is None else environment
    names = ("STEPAUDIO_COORDINATOR", "STEPAUDIO_PROCESSES", "STEPAUDIO_PROCESS")
    given = [
        environment.get(name) if value is None else value
        for name, value in zip(names, (coordinator, processes, process), strict=True)
    ]
    if any(value is not None for value in given):
        address, count, number = _explicit(names, given)
        _gloo_on_cpu()
        jax.distributed.initialize(address, count, number, initialization_timeout=timeout)
    elif kind := detect(environment):
        if kind == "slurm":
            _gloo_on_cpu()
        jax.distributed.initialize(initialization_timeout=timeout)


NOTEBOOKS = ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE")
"""What hosted notebooks set: one machine with a TPU, but none of a Cloud TPU VM's metadata."""


def detect(environment: Mapping[str, str]) -> str | None:
    """Which kind of cluster the environment tells of, if any: "gke", "slurm" or "tpu" (a Cloud TPU VM)."""
    if any(name in environment for name in NOTEBOOKS):
        return None
    if "TPU_WORKER_HOSTNAMES" in environment or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
        return "gke" if len(hosts) > 1 or "MEGASCALE_COORDINATOR_ADDRESS" in environment else None
    if int(environment.get("SLURM_NTASKS", "1") or 1) > 1 and "SLURM_PROCID" in environment:
        return "slurm"
    if os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0"):
        return "tpu"
    return None


def _explicit(names: tuple[str, ...], given: list) -> tuple[str, int, int]:
    if missing := [name for name, value in zip(names, given, strict=True) if value is None]:
        raise StartError(f"{', '.join(missing)}: missing; an explicit start needs {', '.join(names)}")
    address = str(given[0])
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise StartError(f'{names[0]}: expected "host:port", found "{address}"')
    try:
        count, number = int(given[1]), int(given[2])
    except ValueError:
        raise StartError(f"{names[1]} and {names[2]}: expected numbers, found {given[1]!r} and {given[2]!r}") from None
    if not 0 <= number < count:
        raise StartError(f"{names[2]}: expected a number from 0 to {count - 1}, found {number}")
    return address, count, number


def _gloo_on_cpu() -> None:
    """CPU processes talk through gloo, which JAX has built in but does not choose by itself everywhere."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
