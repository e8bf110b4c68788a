"""Small files of a folder that others made: a checkpoint's config, index and texts, an adapter's config.

A folder that was downloaded may hold anything under these names: a named pipe that never ends, a link to a file of the
reader's own, a terabyte of zeros, JSON nested deeper than a parser's stack. Such files are refused unread.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath

from stepaudio_jax.inputs.values import printable

MAX_JSON_BYTES = 16 << 20
"""Of a JSON file or header: the largest index of a public model has 9 MB. Parsed, a byte may take 25 of memory."""
MAX_TEXT_BYTES = 128 << 20
"""Of a text that is copied or given to a library, such as tokenizer.json (at most 35 MB in public models)."""
MAX_DEPTH = 64
"""Of lists and objects in each other: far from what recursive code stands, and more than any config uses."""
MAX_LINE = 1000
"""Characters of a message: a name in a file may be as long as the file."""

_PACKAGE = Path(os.path.abspath(__file__)).parent.parent
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class InputError(ValueError):
    """A file that cannot be used; the message names it and is one line."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """A message without what would break a line or steer a terminal, cut where it is very long."""
    text = " ".join(text[: 4 * MAX_LINE].split())
    text = printable(text)
    return text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]} …"


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path lies in an object store, which has no links, no pipes, no renaming and no locks."""
    return "://" in str(path)


def regular_file(path: epath.PathLike, most: int = MAX_TEXT_BYTES) -> None:
    """Refuses what is no ordinary file of its own folder. Links may lead to other files of the folder, and from a
    snapshot in the Hugging Face hub's cache to the blobs beside it.

    Raises:
      InputError: a folder, pipe, socket or device, a link that leaves the folder or leads nowhere, or more than `most`
        bytes.
      FileNotFoundError: no such file.
      OSError: it may not be looked at.
    """
    if is_remote(path):
        return
    folder = os.path.dirname(os.path.abspath(path))
    target, home = os.path.realpath(path), os.path.realpath(folder)
    inside = os.path.commonpath((target, home)) == home
    ours = Path(folder).is_relative_to(_PACKAGE)  # some installers link a package's files to their cache
    if os.path.lexists(path) and not (inside or ours or _is_blob(target, home)):
        raise InputError(f"{path}: a link to {target}, outside its folder; put the file itself there")
    try:
        found = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise InputError(f"{path}: a link to {os.readlink(path)}, which is not there") from None
        raise
    if not stat.S_ISREG(found.st_mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(found.st_mode)), "something else")
        raise InputError(f"{path}: expected a file, found {kind}")
    if found.st_size > most:
        raise InputError(f"{path}: {found.st_size:,} bytes; expected at most {most:,}")


def _is_blob(target: str, home: str) -> bool:
    """Whether a file is where the hub's cache keeps what REPOSITORY/snapshots/COMMIT/… links to: REPOSITORY/blobs/."""
    repositories = [folder.parent for folder in Path(home).parents if folder.name == "snapshots"]
    return Path(target).parent in [repository / "blobs" for repository in repositories]


def open_regular(path: epath.PathLike, most: int = 1 << 62) -> BinaryIO:
    """Opens a local file that `regular_file` lets pass, and never waits for a writer. Raises as it does."""
    regular_file(path, most)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):  # exchanged a moment ago
        os.close(handle)
        raise InputError(f"{path}: expected a file")
    return os.fdopen(handle, "rb")


def read_text(path: epath.PathLike, most: int = MAX_TEXT_BYTES) -> str:
    """The text of a file.

    Raises:
      InputError: as `regular_file`, more than `most` bytes, or not UTF-8.
      FileNotFoundError, OSError: as `regular_file`.
    """
    try:
        return _read(path, most).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_object(path: epath.PathLike) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
      InputError: as `read_text`, not JSON, nested too deeply, or no object.
      FileNotFoundError, OSError: as `regular_file`.
    """
    return parse_object(_read(path, MAX_JSON_BYTES), str(path))


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object that bytes are. Raises as `parse_json`, and where they are something else."""
    values = parse_json(data, where)
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected a JSON object {{…}}, found a {type(values).__name__}")
    return values


def parse_json(data: bytes, where: str, *, unique: bool = False) -> Any:
    """JSON of a bounded depth. NaN and infinities are let through, for whoever reads the field to refuse.

    Args:
      where: what messages begin with.
      unique: refuse an object that gives a key twice; by default the last one counts.

    Raises:
      InputError: not JSON, nested more than MAX_DEPTH deep, or a key twice.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            seen: set[str] = set()
            twice = next(name for name, _ in items if name in seen or seen.add(name))
            raise InputError(f"{where}: {twice} is given twice")
        return found

    if _is_deep(data):
        raise InputError(f"{where}: JSON nested more than {MAX_DEPTH} deep")
    try:
        return json.loads(data.decode(), object_pairs_hook=pairs if unique else None)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except ValueError as error:  # also of an integer with more digits than Python converts
        raise InputError(f"{where}: not JSON ({error})") from None


def _is_deep(data: bytes) -> bool:
    """Whether lists and objects lie more than MAX_DEPTH deep in each other, found without recursion."""
    depth = 0
    for bracket in _STRING.sub(b"", data).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _read(path: epath.PathLike, most: int) -> bytes:
    if is_remote(path):
        return epath.Path(path).read_bytes()
    with open_regular(path, most) as file:
        return file.read(most)
