"""The house's floors: what each room may import. Reads the source, runs none of it.

A room is a folder or a file directly under stepaudio_jax/, or a package beside it. It may import the
floors below it and itself. An import inside a function or under TYPE_CHECKING counts like any other.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGE = "stepaudio_jax"
FLOORS = [  # lowest first
    ("inputs",),
    ("config",),
    ("audio", "text", "kernels", "parallel"),
    ("scoring",),
    ("models",),
    ("checkpoints",),
    ("data", "miniature"),
    ("inference", "training"),
    ("judges",),
    ("evals",),
    ("rl",),
    ("serving", "recipe", "plan", "demo"),
    ("checkpoints_convert",),
    (PACKAGE,),  # stepaudio_jax/__init__.py, the names a user imports
    ("cli",),
    ("__main__",),
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
TOP_LEVEL = (PACKAGE, "checkpoints_convert", "configs")
FORBIDDEN = {"torch", "transformers", "pickle", "cloudpickle", "dill"}
ONLY_IN = {"orbax": "checkpoints", "tensorstore": "checkpoints"}  # library: the one room that may import it
EXTRAS = ("data", "beam", "train", "serve", "web", "rl", "judge")  # libraries imported inside functions
DOCUMENTED = (*TOP_LEVEL, "tests", "benchmarks", "launch", "tools")

REPO = Path(__file__).resolve().parent.parent


def modules(root: Path) -> dict[str, Path]:
    """Dotted name → file, of every module in the packages under root."""
    found = {}
    for top in TOP_LEVEL:
        for path in (root / top).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(name: str, path: Path) -> Iterator[tuple[int, str, str | None]]:
    """(line, module, imported name) of each import in a file, relative ones made absolute."""
    parts = name.split(".")
    package = parts if path.name == "__init__.py" else parts[:-1]

    def absolute(module: str | None, level: int) -> str:
        base = package[: len(package) - level + 1] if level else []
        return ".".join([*base, *([module] if module else [])])

    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, absolute(node.module, node.level), alias.name
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            # importlib.import_module("…") and __import__("…"), where the name is written out
            called = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
            target = node.args[0].value
            if called in ("import_module", "__import__") and isinstance(target, str):
                level = len(target) - len(target.lstrip("."))
                yield node.lineno, absolute(target.lstrip("."), level), None


def room_of(module: str) -> str | None:
    """The room a dotted name lies in; None for what is not ours or has no floor of its own."""
    top, *rest = module.split(".")
    if top == PACKAGE:
        return rest[0] if rest else PACKAGE
    return top if top == "checkpoints_convert" else None


def violations(root: Path) -> list[str]:
    """Every breach of the floors, as "file:line: what is wrong"."""
    known = modules(root)
    wrong, inside = [], {name: set() for name in known}
    for name, path in sorted(known.items()):
        where = path.relative_to(root)
        room = room_of(name)
        if room is not None and room not in FLOOR:
            wrong.append(f"{where}: room {room} has no floor; give it one in DESIGN and in FLOORS")
            continue
        for line, module, imported in imports(name, path):
            library = module.split(".")[0]
            if library in FORBIDDEN:
                wrong.append(f"{where}:{line}: imports {library}")
            if library in ONLY_IN and room != ONLY_IN[library]:
                wrong.append(f"{where}:{line}: imports {library}, which only {ONLY_IN[library]}/ may")
            target = f"{module}.{imported}"  # a module, or a name in one
            if target not in known and not (module == PACKAGE and imported in FLOOR):
                target = module
            other = room_of(target)
            if other is None or room is None:
                continue
            if other not in FLOOR:
                wrong.append(f"{where}:{line}: imports {target}, a room without a floor")
            elif other == room:
                if target in known:
                    inside[name].add(target)
            elif FLOOR[other] == FLOOR[room]:
                wrong.append(f"{where}:{line}: {room} imports {other}, on the same floor")
            elif FLOOR[other] > FLOOR[room]:
                wrong.append(f"{where}:{line}: {room} imports {other}, a floor above")
    wrong += [f"circle: {' -> '.join(circle)}" for circle in circles(inside)]
    return wrong


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The circles that a depth-first walk of the graph runs into: at least one wherever there is any."""
    found, done, trail = [], set(), []

    def walk(node):
        if node in trail:
            found.append([*trail[trail.index(node) :], node])
        elif node not in done:
            trail.append(node)
            for target in sorted(graph[node]):
                walk(target)
            done.add(trail.pop())

    for node in sorted(graph):
        walk(node)
    return found


def undeclared(root: Path) -> list[str]:
    """Imports of the packages that pyproject.toml does not ask for, and a fresh installation lacks."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    asked = [*project["dependencies"], *(line for name in EXTRAS for line in extras.get(name, []))]
    declared = {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower().replace("_", "-") for line in asked}
    installed = packages_distributions()  # import name → names to install
    missing = []
    for name, path in sorted(modules(root).items()):
        for line, module, _ in imports(name, path):
            library = module.split(".")[0]
            names = {found.lower().replace("_", "-") for found in installed.get(library, [library])}
            if library not in TOP_LEVEL and library not in sys.stdlib_module_names and not names & declared:
                missing.append(f"{path.relative_to(root)}:{line}: {library} is not among the dependencies")
    return missing


def undocumented(root: Path) -> list[str]:
    """The Python files without a docstring that says what they are."""
    files = [path for top in DOCUMENTED for path in sorted((root / top).rglob("*.py"))]
    bare = [path.relative_to(root) for path in files if not ast.get_docstring(parse(path))]
    empty = {path for path in bare if path.name == "__init__.py" and not (root / path).read_bytes()}
    return [str(path) for path in bare if not (path in empty and path.parts[0] == "tests")]


def test_no_import_breaks_the_floors():
    assert len(modules(REPO)) > 5
    assert violations(REPO) == []


def test_every_file_says_what_it_is():
    assert undocumented(REPO) == []


def test_every_library_is_a_declared_dependency():
    assert undeclared(REPO) == []


# The checker itself, on small houses with one planted fault each.

SOUND = {
    "stepaudio_jax/__init__.py": "import importlib\nfrom stepaudio_jax import inference",
    "stepaudio_jax/config.py": "import dataclasses",
    "stepaudio_jax/audio/__init__.py": "from stepaudio_jax.audio.mel import log_mel",
    "stepaudio_jax/audio/mel.py": "from ..config import AudioEncoderConfig\nfrom . import read",
    "stepaudio_jax/audio/read.py": "import numpy",
    "stepaudio_jax/text/__init__.py": "from stepaudio_jax import config",
    "stepaudio_jax/models/decoder.py": "import stepaudio_jax.config as c\nfrom ..audio import mel",
    "stepaudio_jax/checkpoints/__init__.py": "import orbax.checkpoint as ocp",
    "stepaudio_jax/inference/__init__.py": "from stepaudio_jax.text import prompt",
    "stepaudio_jax/rl/__init__.py": "",
    "stepaudio_jax/cli.py": "from stepaudio_jax import StepAudio\nimport checkpoints_convert",
    "checkpoints_convert/__init__.py": "from stepaudio_jax import checkpoints",
    "configs/tiny.py": "from stepaudio_jax import config, training",
}
PLANTED = {  # what: (file, source, part of the one complaint expected)
    "up": ("audio/x.py", "from stepaudio_jax.models import decoder", "audio imports models, a floor above"),
    "up, relative": ("audio/x.py", "from ..models.decoder import D", "audio imports models, a floor above"),
    "up, late": ("config.py", "def f():\n    import stepaudio_jax.rl.x", "config imports rl, a floor above"),
    "up, for types": ("config.py", "if TYPE_CHECKING:\n    from . import audio", "config imports audio"),
    "up, named": ("models/x.py", "importlib.import_module('stepaudio_jax.rl')", "models imports rl"),
    "up, named, relative": ("models/x.py", "import_module('..rl', __package__)", "models imports rl"),
    "up, to the top": ("rl/x.py", "from stepaudio_jax import StepAudio", "rl imports stepaudio_jax"),
    "up, to the command": ("rl/x.py", "from stepaudio_jax.cli import main", "rl imports cli"),
    "up, to the next package": ("rl/x.py", "import checkpoints_convert.hf", "rl imports checkpoints_convert"),
    "across": ("text/x.py", "from stepaudio_jax.audio.mel import f", "text imports audio, on the same floor"),
    "across, by the top": ("text/x.py", "from stepaudio_jax import audio", "text imports audio, on the same"),
    "circle of two": (
        "audio/read.py",
        "from stepaudio_jax.audio import mel",
        "circle: stepaudio_jax.audio.mel -> stepaudio_jax.audio.read -> stepaudio_jax.audio.mel",
    ),
    "circle through __init__": (
        "audio/read.py",
        "from stepaudio_jax.audio import log_mel",
        "circle: stepaudio_jax.audio -> stepaudio_jax.audio.mel -> stepaudio_jax.audio.read -> stepaudio",
    ),
    "circle of one": ("rl/ppo.py", "import stepaudio_jax.rl.ppo", "circle: stepaudio_jax.rl.ppo -> step"),
    "orbax": ("training/loop.py", "from orbax import checkpoint", "imports orbax, which only checkpoints/"),
    "orbax in a config": ("../configs/x.py", "import orbax.checkpoint", "imports orbax, which only"),
    "torch": ("models/x.py", "from torch import nn", "imports torch"),
    "torch beside": ("../checkpoints_convert/x.py", "import torch", "imports torch"),
    "transformers": ("text/x.py", "import numpy, transformers.models", "imports transformers"),
    "pickle, late": ("checkpoints/x.py", "def f():\n    import pickle", "imports pickle"),
    "room without a floor": ("attic/__init__.py", "", "room attic has no floor"),
    "into such a room": ("cli.py", "import stepaudio_jax.attic", "attic, a room without a floor"),
}


def build(root: Path, files: dict[str, str]):
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")


def test_checker_passes_a_sound_house(tmp_path):
    build(tmp_path, SOUND)
    assert violations(tmp_path) == []


@pytest.mark.parametrize("file, source, expected", PLANTED.values(), ids=PLANTED.keys())
def test_checker_finds_what_is_planted(tmp_path, file, source, expected):
    build(tmp_path, SOUND)
    build(tmp_path, {f"stepaudio_jax/{file}": source})
    found = violations(tmp_path)
    assert len(found) == 1 and expected in found[0], found


def test_checker_finds_undeclared_libraries(tmp_path):
    pyproject = '[project]\ndependencies = ["jax>=0.10,<1", "orbax-checkpoint"]\noptional-dependencies.dev = ["chex"]'
    imported = "import os, jax.numpy\nfrom orbax import checkpoint\nfrom . import config\nimport chex, nowhere"
    build(tmp_path, {"pyproject.toml": pyproject, "stepaudio_jax/x.py": imported})
    assert undeclared(tmp_path) == [
        "stepaudio_jax/x.py:4: chex is not among the dependencies",
        "stepaudio_jax/x.py:4: nowhere is not among the dependencies",
    ]


def test_checker_finds_files_without_docstring(tmp_path):
    sources = {"a.py": '"""Says."""', "b.py": "# does not", "test_c.py": "", "__init__.py": ""}
    build(tmp_path, {f"tests/{name}": source for name, source in sources.items()})
    assert undocumented(tmp_path) == ["tests/b.py", "tests/test_c.py"]
    build(tmp_path, {"stepaudio_jax/models/__init__.py": ""})
    assert "stepaudio_jax/models/__init__.py" in undocumented(tmp_path)
