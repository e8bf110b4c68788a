"""What a record says about its sound, to samples: files under folders named by the user, tar shards, bytes, arrays.

Nothing is fetched from a URL, and no file is opened that does not lie under one of the roots, links followed.
"""

from __future__ import annotations

import base64
import binascii
import functools
import os
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from stepaudio_jax.audio import AudioError, load_audio, load_audio_array, load_audio_bytes
from stepaudio_jax.text import Audio

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


Stamps = dict[str, list[int] | None]
"""By path what tells a file from a changed one: bytes, and when it last changed, in nanoseconds; None for no file."""


def stamp(path: epath.Path) -> list[int] | None:
    if "://" in str(path):
        return [path.stat().length, int(path.stat().mtime * 10**9)] if path.exists() else None
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns]


MAX_CLIPS, MAX_RECORD_SECONDS = 2000, 4 * 3600
"""Of one record, where a pair names those of its prompt twice. A clip may be named in a few bytes, and last for hours.
Four hours are 0.9 GB of samples, and more than 65,536 positions hold at 80 ms each, 1.5 hours."""


class Clips(Protocol):
    """What readers of records load clips from: as `Sounds` does."""

    def load(self, reference: Any, what: str) -> Audio: ...

    def load_base64(self, text: str, what: str) -> Audio: ...


class RecordSounds:
    """The clips of one record, within the bounds of one. What is named several times, as the prompt of a pair is, is
    loaded once, and its samples are shared."""

    def __init__(self, sounds: Clips):
        self._sounds = sounds
        self._clips: dict[str | int, Audio] = {}
        self._named, self._seconds = 0, 0.0

    def load(self, reference: Any, what: str) -> Audio:
        """As `Sounds.load`. Raises AudioError also for more clips, or more sound, than a record may have."""
        return self._take(reference, lambda: self._sounds.load(reference, what), what)

    def load_base64(self, text: str, what: str) -> Audio:
        """As `Sounds.load_base64`, within the same bounds."""
        return self._take(text, lambda: self._sounds.load_base64(text, what), what)

    def _take(self, reference: Any, load: Callable[[], Audio], what: str) -> Audio:
        self._named += 1
        if self._named > MAX_CLIPS:
            raise AudioError(f"{what}: more than the {MAX_CLIPS:,} clips that a record may have (MAX_CLIPS)")
        key = reference if isinstance(reference, str) else id(reference)  # the record lives as long as this
        if key not in self._clips:
            clip = self._clips[key] = load()
            self._seconds += clip.seconds
            if self._seconds > MAX_RECORD_SECONDS:
                raise AudioError(
                    f"{what}: more than the {MAX_RECORD_SECONDS:,} s of sound that a record may have "
                    "(MAX_RECORD_SECONDS); split the dialogue"
                )
        return self._clips[key]


class Sounds:
    """Loads clips by what records call them. Threads may share one; a copy sent to another process opens its own.

    Attributes:
      seen: if set, where every file that was looked for is noted, found or not: local ones, and tar shards. Those that
        lie in an object store are not, since each would cost a request.
    """

    def __init__(self, roots: Sequence[epath.PathLike], max_seconds: float = 3600):
        """`roots`: folders and uncompressed tar files, local or gs://, with `*` in the last part if need be; what a
        record names is looked for in each, in order. `max_seconds`: longer sound is refused.

        Raises:
          ValueError: a root that does not exist.
        """
        self.roots = [found for root in roots for found in _expand(epath.Path(root))]
        self.max_seconds = max_seconds
        self.seen: Stamps | None = None
        self._folders = [os.path.realpath(root) for root in self.roots if root.suffix != ".tar" and _is_local(root)]

    def load(self, reference: Any, what: str) -> Audio:
        """A clip from a path, a `data:` URL, bytes, {"bytes", "path"}, or {"array", "sampling_rate"}.

        `what` is the field, for messages. Integers in an array are 16 bit if all fit, else 32 bit.

        Raises:
          AudioError: not there, not allowed, not sound; one line.
        """
        if isinstance(reference, str) and reference.startswith("data:"):
            return self._load_data_url(reference, what)
        if isinstance(reference, str):
            return self._find(reference, what)
        if isinstance(reference, bytes):
            return self._decode(reference, what)
        if isinstance(reference, Mapping):
            name = reference["path"] if isinstance(reference.get("path"), str) else what
            if isinstance(reference.get("bytes"), bytes):
                return self._decode(reference["bytes"], name)
            if reference.get("array") is not None:
                samples, rate = _array(reference["array"], reference.get("sampling_rate"), what)
                return Audio(load_audio_array(samples, rate, name, max_seconds=self.max_seconds), name)
            if name is not what:
                return self._find(name, what)
        raise AudioError(
            f"{what}: expected a path, a data: URL, bytes, or an object with bytes, array or path, found "
            f"{type(reference).__name__}"
        )

    def load_base64(self, text: str, what: str) -> Audio:
        """A clip from the bytes of a sound file in base64. Raises AudioError."""
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise AudioError(f"{what}: not base64 ({error})") from None
        return self._decode(data, what)

    def _load_data_url(self, url: str, what: str) -> Audio:
        head, comma, text = url.partition(",")
        if not comma or not head.endswith(";base64"):
            raise AudioError(f'{what}: expected "data:audio/…;base64,…", found "{head[:60]}"')
        return self.load_base64(text, what)

    def _decode(self, data: bytes, name: str) -> Audio:
        return Audio(load_audio_bytes(data, name, max_seconds=self.max_seconds), name)

    def _find(self, name: str, what: str) -> Audio:
        """A file under a root; several roots may have it, the first is taken."""
        shown = f'{what}: "{name[:200]}"'
        if "://" in name.removeprefix("gs://"):
            raise AudioError(f"{shown} is a URL; nothing is fetched: download it, and name its folder as a root")
        if ".." in name.split("/") or "\0" in name:
            raise AudioError(f"{shown} leads out of its folder; expected a path below a root")
        outside = None
        for root in self.roots:
            if root.suffix == ".tar":
                self._note(root)
                if (place := self._members.get(name.removeprefix("./"))) is not None:
                    return self._decode(_member(*place), name)
                continue
            if (path := _below(root, name)) is None:
                outside = name
                continue
            if _is_local(path):
                self._note(path)
            if _is_file(path):
                if self._is_inside(path):
                    return Audio(load_audio(path, max_seconds=self.max_seconds), name)
                outside = os.path.realpath(path)
        where = ", ".join(map(str, self.roots)) or "no folder: none was named"
        if outside is not None:
            raise AudioError(f"{shown} lies at {outside[:200]}, outside of {where}; name its folder as a root too")
        raise AudioError(f"{shown}: no such file under {where}")

    def _note(self, path: epath.Path) -> None:
        if self.seen is not None and str(path) not in self.seen:
            self.seen[str(path)] = stamp(path)

    def _is_inside(self, path: epath.Path) -> bool:
        """Whether a file, links followed, lies in one of the folders; gs:// has no links."""
        real = os.path.realpath(path)  # epath's own resolve follows no links
        return not _is_local(path) or any(os.path.commonpath([real, folder]) == folder for folder in self._folders)

    @functools.cached_property
    def _members(self) -> dict[str, tuple[epath.Path, int, int]]:
        """Of every file in the tar shards: shard, first byte, size. Of equal names the first shard's is taken."""
        members: dict[str, tuple[epath.Path, int, int]] = {}
        for shard in (root for root in self.roots if root.suffix == ".tar"):
            for name, first, size in _list_members(shard):
                members.setdefault(name, (shard, first, size))
        return members


def unread_of(reference: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an object that names a clip which `Sounds.load` does not look at."""
    if isinstance(reference.get("bytes"), bytes):
        used = ("bytes", "path")
    elif reference.get("array") is not None:
        used = ("array", "sampling_rate", "path")
    else:
        used = ("path",)
    return {name: value for name, value in reference.items() if name not in used and value is not None}


def _expand(root: epath.Path) -> list[epath.Path]:
    try:
        found = sorted(root.parent.glob(root.name)) if "*" in root.name else [root] if root.exists() else []
    except ImportError as error:  # what epath needs for gs://
        raise ValueError(f"{root}: {error}") from None
    if not found:
        raise ValueError(f"{root}: no such folder or tar file to look for sound in")
    for path in found:
        if not path.is_dir() and path.suffix != ".tar":
            raise ValueError(f"{path}: expected a folder or an uncompressed .tar to look for sound in")
    return found


def _below(root: epath.Path, name: str) -> epath.Path | None:
    """The path that a name has in a folder; None for a whole path that does not lie there."""
    if name.startswith("/"):
        return epath.Path(name) if _is_local(root) else None
    if _SCHEME.match(name):
        return epath.Path(name) if name.startswith(f"{root}/") else None
    return root / name


def _is_local(path: epath.Path) -> bool:
    return not _SCHEME.match(str(path))


def _is_file(path: epath.Path) -> bool:
    return os.path.isfile(path) if _is_local(path) else path.exists()  # neither a pipe nor a device


def _list_members(shard: epath.Path) -> list[tuple[str, int, int]]:
    try:
        with shard.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            files = [member for member in tar if member.isreg()]
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: not an uncompressed tar file ({error})") from None
    length = shard.stat().length
    for file in files:
        if file.offset_data + file.size > length:
            raise ValueError(f"{shard}: truncated within {file.name}")
    return [(file.name.removeprefix("./"), file.offset_data, file.size) for file in files]


def _member(shard: epath.Path, first: int, size: int) -> bytes:
    with shard.open("rb") as stream:
        stream.seek(first)
        return stream.read(size)


MAX_CHANNELS, LEAST_SAMPLES_A_CHANNEL = 8, 100
"""Of a two-dimensional array: sound has at most 7.1, eight channels, and many more samples than channels."""


def _array(array: Any, rate: Any, what: str) -> tuple[np.ndarray, int]:
    """An array [samples], [samples, channels] or [channels, samples] as floats [samples, channels]; its rate in Hz."""
    samples = np.asarray(array)
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf" or not samples.size:
        raise AudioError(
            f"{what}: expected numbers of shape [samples], [samples, channels] or [channels, samples], found "
            f"{samples.dtype} {list(samples.shape)}"
        )
    if not isinstance(rate, int | float | np.number) or not 1 <= rate < 2**31:
        raise AudioError(f"{what}: expected a sampling_rate in Hz beside the array, found {rate!r}")
    if samples.dtype.kind != "f":
        samples = samples / (1 << (15 if np.abs(samples).max() <= 1 << 15 else 31))
    if samples.ndim == 2 and _channel_axis(samples.shape, what) == 0:
        samples = samples.T
    return samples.reshape(len(samples), -1), int(rate)


def _channel_axis(shape: tuple[int, ...], what: str) -> int:
    """Which axis of a two-dimensional array is the channels: Hugging Face writes them first, soundfile last."""
    for axis in (0, 1):
        if shape[axis] <= MAX_CHANNELS and shape[axis] * LEAST_SAMPLES_A_CHANNEL <= shape[1 - axis]:
            return axis
    raise AudioError(
        f"{what}: which axis of an array of shape {list(shape)} is the channels? Expected one of at most "
        f"{MAX_CHANNELS}, at least {LEAST_SAMPLES_A_CHANNEL} times shorter than the other; or write one channel"
    )
