"""A work of several steps, each in a folder of its own, each done once: what it found lies in its done.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from etils import epath
from rich.console import Console

DONE = "done.json"


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
        unfinished = own / f"{DONE}.unfinished"
        unfinished.write_text(json.dumps(found, indent=2) + "\n")
        unfinished.replace(own / DONE)
        return json.loads((own / DONE).read_text())
