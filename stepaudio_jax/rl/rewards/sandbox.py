"""Runs a Python program that nobody has read, confined (confined.py), and says what it wrote."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_CONFINED = Path(__file__).with_name("confined.py")
_START_SECONDS = 20.0
_MOST_FILES = 100


class SandboxError(OSError):
    """This machine cannot run a program confined; nothing was run."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
      memory: bytes of address space, the interpreter's own few dozen MB included.
      output: bytes of standard output; one more ends it.
      files: bytes in its folder, of one file and of all together.
    """

    memory: int = 512 << 20
    output: int = 1 << 20
    files: int = 1 << 20


@dataclasses.dataclass(frozen=True)
class Ran:
    """What became of a program.

    Attributes:
      output: what it wrote, up to the limit.
      status: its exit status, minus the signal's number where one ended it; None where it was stopped.
      stopped: the limit for which it was ended from outside: "seconds", "output" or "files".
    """

    output: bytes
    status: int | None
    stopped: str | None = None

    @property
    def well(self) -> bool:
        return self.status == 0 and self.stopped is None


def run(source: str, *, seconds: float, call: str | None = None, stdin: str = "", limits: Limits | None = None) -> Ran:
    """Runs a program, and then the expression `call` where one is given.

    Args:
      seconds: of wall-clock time, from when it is confined.
      call: an expression in the program's names; the output then is the repr of its value alone.

    Raises:
      SandboxError: the system has not what it takes: Linux 6.2 or later with Landlock and seccomp.
    """
    if sys.platform != "linux":
        raise SandboxError(f"system: expected linux, found {sys.platform}")
    limits = limits or Limits()
    with (
        tempfile.TemporaryDirectory(prefix="stepaudio-code-") as folder,
        tempfile.TemporaryFile() as job,
        tempfile.TemporaryFile() as given,
    ):
        described = {
            "source": source,
            "call": call,
            "parent": os.getpid(),
            "folder": folder,
            "readable": _readable(),
            "memory": limits.memory,
            "cpu_seconds": math.ceil(seconds) + 1,
            "file_bytes": limits.files,
        }
        job.write(json.dumps(described).encode())
        given.write(stdin.encode("utf-8", "backslashreplace"))
        job.seek(0)
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_CONFINED), str(job.fileno())],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd=folder,
            start_new_session=True,
            pass_fds=(job.fileno(),),
        )
        try:
            return _follow(process, folder, seconds, limits)
        finally:
            if process.returncode is None:  # not waited for, so the number is still its own
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _follow(process: subprocess.Popen[bytes], folder: str, seconds: float, limits: Limits) -> Ran:
    """Reads what a program writes until it ends or goes over a limit. The first byte tells that it is confined."""
    assert process.stdout is not None
    output, descriptor = bytearray(), process.stdout.fileno()
    deadline = time.monotonic() + _START_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            wait = deadline - time.monotonic()
            piece = os.read(descriptor, 1 << 16) if selector.select(max(0.0, min(wait, 0.1))) else None
            if piece:
                if not output:
                    deadline = time.monotonic() + seconds
                output += piece
                if output[0] == 1 and len(output) > 1 + limits.output:
                    return Ran(bytes(output[1 : 1 + limits.output]), None, "output")
            elif piece is not None:
                break
            elif wait <= 0:
                if not output:
                    raise SandboxError(f"sandbox: expected it to start within {_START_SECONDS:g} s, and it did not")
                return Ran(bytes(output[1:]), None, "seconds")
            if _too_full(folder, limits):
                return Ran(bytes(output[1:]), None, "files")
    if output[:1] != b"\1":
        raise SandboxError(f"sandbox: {bytes(output[1:]).decode(errors='replace') or 'ended before it was confined'}")
    while (status := process.poll()) is None:  # it has closed its output and may go on
        if time.monotonic() > deadline or _too_full(folder, limits):
            return Ran(bytes(output[1:]), None, "seconds" if time.monotonic() > deadline else "files")
        time.sleep(0.002)
    return Ran(bytes(output[1:]), status)


def _too_full(folder: str, limits: Limits) -> bool:
    sizes = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                sizes.append(entry.stat(follow_symlinks=False).st_size)
            except FileNotFoundError:
                continue
            if len(sizes) > _MOST_FILES:
                return True
    return sum(sizes) > limits.files


def _readable() -> list[str]:
    """What an interpreter needs to import its standard library."""
    own = [os.path.dirname(os.__file__), os.path.join(sys.base_prefix, "lib")]
    return [*own, "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom"]
