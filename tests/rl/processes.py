"""The processes that another has started, as /proc tells (Linux)."""

import os
import time
from pathlib import Path


def descendants(process: int) -> set[int]:
    """Those that it, and what it started, have started and that have not ended."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found, todo = set(), [process]
    while todo:
        todo += (new := children.get(todo.pop(), []))
        found |= set(new)
    return found


def wait_for(what, seconds: float = 600):
    """Waits until a function gives something true, and gives that."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return found


def alive(processes: set[int]) -> set[int]:
    """Those of them that run; a zombie does not."""
    running = set()
    for process in processes:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            running.add(process)
    return running


def own_descendants() -> set[int]:
    return descendants(os.getpid())
