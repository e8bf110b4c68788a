"""What libsndfile does not read (m4a, webm, wma, video), decoded by ffmpeg where it is on the PATH."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from jaxtyping import Float

TIMEOUT_SECONDS = 600
BLOCK = 1 << 18
"""Values read at a time over all channels."""

FORMATS = "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,wv"
"""Demuxers allowed. Playlists are not among them: a file someone sends must not make ffmpeg open others."""


class FfmpegError(RuntimeError):
    """ffmpeg is missing or could not decode; the message is the cause alone."""


@contextlib.contextmanager
def decode(
    descriptor: int, max_seconds: float | None = None
) -> Iterator[tuple[int, int, Iterator[Float[np.ndarray, "samples channels"]]]]:
    """The first audio stream of an open file: its rate in Hz, its channels, and its samples block by block, float32.

    Args:
      max_seconds: decode little more than that, so that the caller sees that there is more.

    Raises:
      FfmpegError: not on the PATH, too slow, not a medium that it knows, or broken or cut off on the way; some of this
        only when the blocks are read.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise FfmpegError("ffmpeg, which reads most others, is not on the PATH")
    path = f"file:/dev/fd/{descriptor}"  # not a pipe: m4a is read back and forth
    os.lseek(descriptor, 0, os.SEEK_SET)
    command = [program, "-nostdin", "-v", "error", "-xerror"]
    command += ["-protocol_whitelist", "file,pipe", "-format_whitelist", FORMATS, "-i", path]
    command += ["-map", "0:a:0", "-c:a", "pcm_f32le"]
    command += ["-t", str(max_seconds + 1)] if max_seconds is not None else []
    with contextlib.ExitStack() as stack:
        said = stack.enter_context(tempfile.TemporaryFile())
        process = stack.enter_context(
            subprocess.Popen(
                [*command, "-f", "wav", "pipe:1"], stdout=subprocess.PIPE, stderr=said, pass_fds=(descriptor,)
            )
        )
        stack.callback(process.kill)  # whatever happens, nobody waits for it
        late = threading.Event()
        timer = threading.Timer(TIMEOUT_SECONDS, lambda: (late.set(), process.kill()))
        stack.callback(timer.cancel)
        timer.daemon = True
        timer.start()

        def check_end() -> None:
            code = process.wait()
            said.seek(0)
            text = said.read(1 << 16).decode(errors="replace").strip()
            if late.is_set():
                raise FfmpegError(f"ffmpeg did not finish within {TIMEOUT_SECONDS} s")
            if code or header is None or "prematurely" in text:  # a cut-off webm is no error to ffmpeg
                first = re.sub(r"^(\[[^]]*\] *)+", "", text.splitlines()[0]) if text else f"exit code {code}"
                raise FfmpegError(f"ffmpeg says: {first.replace(f'{path}: ', '').replace(path, 'the file')}")

        assert process.stdout is not None
        header = _read_header(process.stdout)
        if header is None:
            process.stdout.close()
            check_end()
            raise AssertionError("check_end raises where there is no header")
        rate, channels = header

        def blocks(output: IO[Any]) -> Iterator[np.ndarray]:
            width = 4 * channels
            while data := output.read(max(1, BLOCK // channels) * width):
                yield np.frombuffer(data[: len(data) // width * width], "<f4").reshape(-1, channels)
            check_end()

        yield rate, channels, blocks(process.stdout)


def _read_header(stream: IO[Any]) -> tuple[int, int] | None:
    """Rate and channels of a wav that comes through a pipe, read up to its samples; None for what is none."""
    if stream.read(12)[8:] != b"WAVE":
        return None
    format = b""
    while len(header := stream.read(8)) == 8:
        name, length = struct.unpack("<4sI", header)
        if name == b"data" and len(format) >= 16:
            channels, rate = struct.unpack_from("<HI", format, 2)
            return (rate, channels) if channels else None
        body = stream.read(min(length + length % 2, 1 << 20))
        format = body if name == b"fmt " else format
    return None
