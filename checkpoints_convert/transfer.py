"""Moves tensors from a source into a new folder: in parallel, in bounded memory, and so that a kill loses little.

The folder grows under the name `DST.unfinished` beside a record of the tensors that are whole, and is renamed at the
end. The same conversion, started again, goes on from that record; another one starts over.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from etils import epath
from rich.console import Console

from checkpoints_convert.progress import byte_bar
from checkpoints_convert.safetensors_files import CODES, Tensor
from checkpoints_convert.sources import ConversionError, Source, slabs
from stepaudio_jax.checkpoints.layout import PROGRESS, publish, unfinished
from stepaudio_jax.inputs import is_remote, read_object

MANIFEST = "manifest.json"
WORKERS = 8
"""Threads, each with one tensor: on few cores they wait for each other's writes, not for a core."""
SAVE_EVERY = 5.0
"""Seconds between two records of what is whole."""


class Sink(Protocol):
    """What tensors are written into."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The type and shape each is stored with."""
        ...

    def multiple(self, name: str) -> int:
        """Rows that are best written together."""
        ...

    def write(self, name: str, start: int, rows: np.ndarray) -> None: ...

    def sync(self) -> None:
        """What was written is on the disk when this returns."""
        ...


def destination_problems(dst: epath.Path, needed: int, *, overwrite: bool) -> list[str]:
    """What keeps a folder of so many bytes from being written there; nothing is."""
    problems = []
    if dst.exists() and not (dst / PROGRESS).exists():
        if not overwrite:
            problems.append(f"{dst}: exists already; choose another name, or --overwrite it")
        elif not dst.is_dir() or not ((dst / "config.json").exists() or not any(dst.iterdir())):
            problems.append(f"{dst}: is no checkpoint (it has no config.json), and is not overwritten")
    if is_remote(dst):
        return problems
    parent = os.path.abspath(dst.parent)
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        return [*problems, f"{parent}: is a file; {dst} cannot be written below it"]
    if not os.access(parent, os.W_OK | os.X_OK):
        return [*problems, f"{parent}: no permission to write in this folder"]
    free = shutil.disk_usage(parent).free
    begun = unfinished(dst)
    there = sum(path.stat().st_blocks * 512 for path in Path(begun).rglob("*") if path.is_file())
    if needed > free + there:
        problems.append(f"{dst}: needs {needed / 1e9:.2f} GB, the disk has {(free + there) / 1e9:.2f} GB free")
    return problems


def overlap_problems(src: epath.Path, dst: epath.Path) -> list[str]:
    """A source must not lie where the destination will replace what there is."""
    if is_remote(src) or is_remote(dst) or not Path(src).resolve().is_relative_to(Path(dst).resolve()):
        return []
    return [f"{dst}: holds the source {src}; choose another name"]


def transfer(
    source: Source,
    dst: epath.Path,
    make_sink: Callable[[epath.Path], Sink],
    *,
    kind: str,
    tensors: Mapping[str, Tensor],
    files: Mapping[str, str],
    about: Mapping[str, Any],
    overwrite: bool,
    show: Console | None = None,
) -> None:
    """Writes a folder from a source.

    Args:
      make_sink: opens the arrays or shards in the unfinished folder, new ones or those of an earlier attempt.
      kind: what is written, which an earlier attempt must have been writing too.
      tensors: type and shape to store, by released name.
      files: text files that go beside the tensors.
      about: goes into the manifest.
      show: where a progress bar goes, if anywhere.

    Raises:
      ConversionError: another conversion is writing this folder, or the disk does not take what is written.
    """
    described = {name: {"dtype": CODES[t.dtype], "shape": list(t.shape)} for name, t in tensors.items()}
    tool = f"stepaudio-jax {metadata.version('stepaudio-jax')}"
    identity = json.dumps([tool, kind, source.fingerprint(), described, sorted(files.items())])
    identity = hashlib.sha256(identity.encode()).hexdigest()
    folder = unfinished(dst)
    with _alone(folder):
        if dst.exists() and not overwrite and folder != dst:
            folder.rmdir()
            raise ConversionError(f"{dst}: exists already, made by another conversion a moment ago")
        if not _is_whole(folder, identity):
            record = _Record(folder, identity, list(tensors), show)
            sink = make_sink(folder)
            try:
                _move(source, sink, record, show)
            except (OSError, ValueError) as error:
                raise ConversionError(
                    f"{folder}: writing stopped ({' '.join(str(error).split())}); "
                    "what is whole is kept: the same command goes on from there"
                ) from error
            for name, text in files.items():
                (folder / name).write_text(text)
            for name, digest in record.done.items():
                described[name]["xxh3_128"] = digest
            manifest = {"tool": tool, **about, "conversion": identity, "tensors": described}
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            record.remove()
        publish(dst)


def _move(source: Source, sink: Sink, record: _Record, show: Console | None) -> None:
    names = [name for name in sink.tensors if name not in record.done]
    total = sum(tensor.nbytes for tensor in sink.tensors.values())
    done = total - sum(sink.tensors[name].nbytes for name in names)
    stop = threading.Event()
    with byte_bar(show, "writing", total, done) as advance, concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:

        def one(name: str) -> tuple[str, str]:
            stored, digest = sink.tensors[name], xxhash.xxh3_128()
            for start, end in slabs(stored, math.lcm(source.multiple(name), sink.multiple(name))):
                if stop.is_set():
                    raise concurrent.futures.CancelledError
                rows = np.ascontiguousarray(source.read(name, start, end).astype(stored.dtype, copy=False))
                digest.update(rows.view(np.uint8).reshape(-1).data)
                sink.write(name, start, rows)
                advance(rows.nbytes)
            return name, digest.hexdigest()

        futures = [pool.submit(one, name) for name in names]
        try:
            for future in concurrent.futures.as_completed(futures):
                record.add(*future.result(), sync=sink.sync)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            whole = [f.result() for f in futures if f.done() and not f.cancelled() and not f.exception()]
            record.done.update(whole)
            with contextlib.suppress(OSError):  # a full disk may not take the record either
                record.save(sink.sync)
            raise
    record.save(sink.sync)


class _Record:
    """Which tensors of an unfinished folder are whole, and the checksum (XXH3, 128 bits) of each."""

    def __init__(self, folder: epath.Path, identity: str, names: list[str], show: Console | None):
        self._path, self._identity, self._names = folder / PROGRESS, identity, names
        self._saved = time.monotonic()
        self.done: dict[str, str] = {}
        before = _read_json(self._path)
        if before.get("conversion") == identity and isinstance(before.get("done"), dict):
            self.done = before["done"]
            if show:
                show.print(f"going on with {folder}: {len(self.done)} of {len(names)} tensors are whole")
            return
        if any(folder.iterdir()):
            if show:
                show.print(f"{folder}: left by another conversion; starting over")
            for path in folder.iterdir():
                path.rmtree() if path.is_dir() else path.unlink()
        self.save(lambda: None)

    def add(self, name: str, digest: str, *, sync: Callable[[], None]) -> None:
        self.done[name] = digest
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save(sync)

    def save(self, sync: Callable[[], None]) -> None:
        sync()
        text = json.dumps({"conversion": self._identity, "names": self._names, "done": self.done})
        other = self._path.parent / f"{PROGRESS}.new"
        other.write_text(text)
        other.replace(self._path)
        self._saved = time.monotonic()

    def remove(self) -> None:
        self._path.unlink()


def _is_whole(folder: epath.Path, identity: str) -> bool:
    """Whether only the renaming was left to do."""
    return not (folder / PROGRESS).exists() and _read_json(folder / MANIFEST).get("conversion") == identity


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError):
        return {}


@contextlib.contextmanager
def _alone(folder: epath.Path) -> Iterator[None]:
    """Two conversions into one folder of this machine would spoil each other's work."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_remote(folder):
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(handle), os.stat(folder))  # not renamed by the one before us
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise ConversionError(f"{folder}: another conversion is writing it")
        yield
    finally:
        os.close(handle)
