"""What every test runs under: the CPU with eight fake devices, no compilation cache, no deadlines.

Set JAX_PLATFORMS to run elsewhere, e.g. `JAX_PLATFORMS=tpu pytest -m tpu` on a TPU.
"""

import importlib.util
import os
import signal
import threading

# In the environment, so that the programs tests start inherit it, and before jax is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a cache hides what compiles, and outlives a change

import hypothesis
import jax
import pytest

FAKE_DEVICES = 8

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # Started in the background of a shell, which ignores ctrl-C for it and for all it starts; tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "cpu" in os.environ["JAX_PLATFORMS"].split(",") and not (
    "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
):
    jax.config.update("jax_num_cpu_devices", FAKE_DEVICES)  # here only: a program a test starts sees one

# The first example of a jitted function pays for its compilation, so no deadline.
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

NEEDS = {"parity": ("torch", "transformers"), "tpu_backend": ("libtpu",)}


def pytest_runtest_setup(item: pytest.Item):
    """Skips what this machine cannot run, saying why; a tier asked for by name fails instead."""
    for marker, packages in NEEDS.items():
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing and item.get_closest_marker(marker):
            reason = f"needs {', '.join(missing)}: see `make help`"
            if item.config.option.markexpr == marker:
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)
    if item.get_closest_marker("tpu") and jax.default_backend() != "tpu":
        pytest.skip(f"needs a TPU, found {jax.default_backend()}: there, JAX_PLATFORMS=tpu pytest -m tpu")
