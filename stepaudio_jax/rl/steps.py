"""A work of several steps, each in a folder of its own, each done once: what it found lies in its done.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from etils import epath
from rich.console import Console

from stepaudio_jax.data.pieces import write_whole
from stepaudio_jax.training.changes import check_unchanged, written
from stepaudio_jax.training.configs import Config

DONE = "done.json"


def begin(config: Config, workdir: epath.PathLike) -> epath.Path:
    """Makes the folder of a work ready, whose config it keeps.

    Raises:
      ConfigChangeError: it was begun with another. ValueError: no model to begin with.
    """
    workdir = epath.Path(workdir)
    if not config.init:
        raise ValueError("config.init: a model to begin with is needed; name a checkpoint")
    check_unchanged(config, workdir / "config.json")
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(workdir / "config.json", written(config).encode())
    return workdir


class Steps:
    """The steps of a folder. Ended at any moment, those that are done are not done again; a step itself goes on from
    what lies in its folder, or begins anew."""

    def __init__(self, folder: epath.PathLike, console: Console):
        self.folder, self.console = epath.Path(folder), console

    def __call__(self, name: str, step: Callable[[epath.Path], dict[str, Any]]) -> dict[str, Any]:
        """What the step of this name found, a JSON object: read where it lies, else found now."""
        own = self.folder / name
        if (own / DONE).exists():
            return json.loads((own / DONE).read_text())
        self.console.rule(name, align="left")
        own.mkdir(parents=True, exist_ok=True)
        found = step(own)
        write_whole(own / DONE, (json.dumps(found, indent=2) + "\n").encode())
        return json.loads((own / DONE).read_text())
