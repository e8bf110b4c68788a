"""The sound of a request: base64, `data:` URLs, and files where the operator allows a folder. Nothing is fetched."""

from __future__ import annotations

import os
import re
import urllib.parse

from stepaudio_jax.audio import AudioError, AudioTooLong, collect_warnings, load_audio, load_audio_bytes
from stepaudio_jax.data.sounds import Sounds
from stepaudio_jax.serving.errors import ApiError, shown
from stepaudio_jax.text import Audio

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")


class Hearing:
    """Decodes the clips of one request, which together may last so long.

    Attributes:
      seconds: of sound so far.
      warnings: of sound that is probably not what was meant, for whoever sent it.
    """

    def __init__(self, max_seconds: float, folder: str | None = None, advice: str = ""):
        """`folder`: files in it may be named, by their path in it, a whole path, or a file: URL. `advice`: what to do
        about sound that is too long."""
        self.seconds = 0.0
        self.warnings: list[str] = []
        self._max_seconds, self._advice = max_seconds, advice
        self._folder = None if folder is None else os.path.realpath(folder)

    def base64(self, text: str, where: str) -> Audio:
        """A clip from a sound file in base64; `where` is the field, for messages. Raises ApiError."""
        if "\n" in text:  # as the base64 command writes it
            text = "".join(text.split())
        return self._heard(where, lambda sounds: sounds.load_base64(text, where))

    def bytes(self, data: bytes, where: str) -> Audio:
        """A clip from a sound file. Raises ApiError."""
        return self._heard(
            where, lambda sounds: Audio(load_audio_bytes(data, where, max_seconds=sounds.max_seconds), where)
        )

    def url(self, url: str, where: str) -> Audio:
        """A clip from a data: URL, or from a file that is allowed. Raises ApiError."""
        scheme = found.group(1).lower() if (found := _SCHEME.match(url)) else ""
        if scheme == "data":
            return self._heard(where, lambda sounds: sounds.load("data" + url[4:], where))
        if scheme not in ("", "file"):
            raise _refused(where, f"found a {shown(scheme)} URL: this server fetches nothing", "url_not_allowed")
        if self._folder is None:
            message = f"found {shown(url)}: this server reads no files (its operator may allow a folder)"
            raise _refused(where, message, "file_not_allowed")
        name = urllib.parse.unquote(urllib.parse.urlsplit(url).path) if scheme else url
        return self._heard(where, lambda sounds: self._file(self._folder or "", name, where, sounds.max_seconds))

    def _file(self, folder: str, name: str, where: str, max_seconds: float) -> Audio:
        try:
            real = os.path.realpath(os.path.join(folder, name))
            inside = os.path.commonpath([real, folder]) == folder and os.path.isfile(real)
        except ValueError:  # a null byte
            real, inside = "", False
        if not inside:  # missing or elsewhere, in the same words: nobody is to learn what lies elsewhere
            message = f"found {shown(name)}: no such file in the folder that is allowed"
            raise _refused(where, message, "file_not_allowed")
        return Audio(load_audio(real, name=f"{where}: {shown(name)}", max_seconds=max_seconds), name)

    def _heard(self, where: str, load) -> Audio:
        try:
            with collect_warnings() as warnings:
                clip: Audio = load(Sounds((), self._max_seconds - self.seconds))
        except AudioError as error:
            message = f"{error}{self._advice}" if isinstance(error, AudioTooLong) else str(error)
            raise ApiError(message, param=where, code="invalid_audio") from None
        self.seconds += clip.seconds
        self.warnings += warnings
        return clip


def _refused(where: str, found: str, code: str) -> ApiError:
    return ApiError(
        f"{where}: expected sound as base64 in input_audio or in a data: URL, {found}", param=where, code=code
    )
