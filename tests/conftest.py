"""What every test runs under: the CPU with eight fake devices, compiled quickly, no deadlines.

Most of the time of these tests would go into compiling small programs once. So LLVM optimises little (XLA's own passes
are as ever), and what was compiled is kept for this run: its processes, and those that its tests start, share one
folder, which goes when the run ends, so that no result depends on an earlier one. Tests with a marker that measures how
close to a peer or how large a program is compile as users do.

Set JAX_PLATFORMS to run elsewhere, e.g. `JAX_PLATFORMS=tpu pytest -m tpu` on a TPU.
"""

import atexit
import importlib.util
import os
import shutil
import signal
import tempfile
import threading
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported

import hypothesis
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

FAKE_DEVICES = 8
ON_CPU = os.environ["JAX_PLATFORMS"] == "cpu"

if "STEPAUDIO_TESTS" not in os.environ:  # the first process; those of pytest-xdist inherit its environment
    os.environ["STEPAUDIO_TESTS"] = tempfile.mkdtemp(prefix="stepaudio-tests-")
    atexit.register(shutil.rmtree, os.environ["STEPAUDIO_TESTS"], ignore_errors=True)


def configure(name: str, value: Any) -> None:
    """Sets an option of jax in this process, and through the environment in those that it starts."""
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)


def compile_quickly(quick: bool) -> None:
    configure("jax_disable_most_optimizations", quick)
    if quick != jax.config.jax_enable_compilation_cache:
        configure("jax_enable_compilation_cache", quick)
        compilation_cache.reset_cache()  # which has noted whether it is used


def add_xla_flags(*flags: str) -> None:
    """For this process, whose backend has not begun, and those that it starts."""
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()


configure("jax_compilation_cache_dir", os.environ["STEPAUDIO_TESTS"])
configure("jax_persistent_cache_min_compile_time_secs", 0)
configure("jax_persistent_cache_min_entry_size_bytes", -1)
compile_quickly(ON_CPU)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # Started in the background of a shell, which ignores ctrl-C for it and for all it starts; tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "cpu" in os.environ["JAX_PLATFORMS"].split(",") and not (
    "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
):
    jax.config.update("jax_num_cpu_devices", FAKE_DEVICES)  # here only: a program a test starts sees one
    # Eight devices of a few cores may meet late, with other work beside them; XLA ends the process after 40 s.
    add_xla_flags("--xla_cpu_collective_call_terminate_timeout_seconds=600")

# The first example of a jitted function pays for its compilation, so no deadline.
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

NEEDS = {"parity": ("torch", "transformers"), "tpu_backend": ("libtpu",)}


QUICK = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
"""XLA's older emitters compile in half the time, and one piece of a small program in less than many."""


def pytest_configure(config: pytest.Config):
    if ON_CPU and config.option.markexpr not in NEEDS and QUICK[0] not in os.environ.get("XLA_FLAGS", ""):
        add_xla_flags(*QUICK)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """What a file's tests have compiled is of no use to the next file's, and takes gigabytes by the end."""
    yield
    jax.clear_caches()


@pytest.fixture
def one_device():
    """For what does not go by the mesh: this test sees the first device alone, for which programs compile sooner."""
    from tests import small

    with small.devices(1):
        yield


def pytest_addoption(parser: pytest.Parser):
    parser.addoption("--part", metavar="I/N", help="only every N-th of the chosen tests, from number I on: 0/7 … 6/7")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]):
    """After the markers have chosen: what `--part` leaves out is deselected."""
    if not (asked := config.option.part):
        return
    part, _, parts = asked.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise pytest.UsageError(f'--part: expected I/N with I from 0 to N - 1, such as 0/7, found "{asked}"')
    kept = items[int(part) :: int(parts)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def pytest_runtest_setup(item: pytest.Item):
    """Skips what this machine cannot run, saying why; a tier asked for by name fails instead."""
    for marker, packages in NEEDS.items():
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing and item.get_closest_marker(marker):
            reason = f"needs {', '.join(missing)}: see `make help`"
            if item.config.option.markexpr == marker:
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)
    compile_quickly(ON_CPU and not any(item.get_closest_marker(tier) for tier in (*NEEDS, "tpu")))
    if item.get_closest_marker("tpu") and jax.default_backend() != "tpu":
        pytest.skip(f"needs a TPU, found {jax.default_backend()}: there, JAX_PLATFORMS=tpu pytest -m tpu")
