"""What libsndfile does not read (m4a, webm, wma, video), decoded by ffmpeg where it is on the PATH."""

from __future__ import annotations

import re
import shutil
import subprocess

TIMEOUT_SECONDS = 600
FORMATS = "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,wv"
"""Demuxers allowed. Playlists are not among them: a file someone sends must not make ffmpeg open others."""


class FfmpegError(RuntimeError):
    """ffmpeg is missing or could not decode; the message is the cause alone."""


def decode(path: str, max_seconds: float | None = None) -> bytes:
    """A local file's first audio stream: a wav of float32 at its own rate, first channel only.

    Args:
      max_seconds: decode little more than that, so that the caller sees that there is more.

    Raises:
      FfmpegError: not on the PATH, too slow, not a medium that it knows, or broken or cut off on the way.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise FfmpegError("ffmpeg, which reads most others, is not on the PATH")
    command = [program, "-nostdin", "-v", "error", "-xerror"]
    command += ["-protocol_whitelist", "file,pipe", "-format_whitelist", FORMATS, "-i", f"file:{path}"]
    command += ["-map", "0:a:0", "-af", "pan=mono|c0=c0", "-c:a", "pcm_f32le"]
    command += ["-t", str(max_seconds + 1)] if max_seconds is not None else []
    try:
        done = subprocess.run([*command, "-f", "wav", "pipe:1"], capture_output=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise FfmpegError(f"ffmpeg did not finish within {TIMEOUT_SECONDS} s") from None
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode or not done.stdout or "prematurely" in said:  # a cut-off webm is no error to ffmpeg
        first = re.sub(r"^(\[[^]]*\] *)+", "", said.splitlines()[0]) if said else f"exit code {done.returncode}"
        raise FfmpegError(f"ffmpeg says: {first}")
    return done.stdout
