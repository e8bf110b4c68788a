"""`import stepaudio_jax` is fast, and neither it nor the model it names drags in what it does not use."""

import importlib.util
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "fastapi", "uvicorn", "gradio", "matplotlib", "tensorflow", "librosa"}


def run(program: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported_by(program: str) -> set[str]:
    """The top-level packages in sys.modules after the program."""
    return set(run(f"{program}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})").split())


def test_import_costs_under_a_second_beyond_jax():
    program = "import jax, time; start = time.time(); import stepaudio_jax; print(time.time() - start)"
    assert min(float(run(program)) for _ in range(3)) < 1.0


def test_import_leaves_heavy_packages_out():
    assert imported_by("import stepaudio_jax") & (HEAVY | {"orbax"}) == set()


def test_the_command_waits_with_its_imports():
    assert imported_by("import stepaudio_jax.cli, checkpoints_convert.command") & (HEAVY | {"jax", "orbax"}) == set()


def test_the_model_leaves_heavy_packages_out():
    assert imported_by("from stepaudio_jax import StepAudio") & HEAVY == set()


@pytest.mark.parity
def test_torch_stays_out_where_it_is_installed():
    assert importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")
    assert imported_by("from stepaudio_jax import StepAudio") & HEAVY == set()
