"""Thousands of damaged sound files, each loaded in a process that may die of it: what is wanted is a sound or an
AudioError, soon, in little memory.

    python tools/flood_sounds.py --cases 20000 --seed 7

Sounds of every format that soundfile writes are damaged in one of the ways below, by a generator seeded with the seed
and the number of the case: any case can be had again with --only NUMBER, which writes it to a file too. The exit code
is 1 where anything was not as wanted.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import multiprocessing
import os
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
import soundfile

from stepaudio_jax.audio import AudioError, collect_warnings, load_audio_bytes

MAX_SECONDS = 60.0
"""Of sound, as a server passes it: a header that lies is not believed beyond."""

HANG_SECONDS = 60.0
MAX_MEGABYTES = 256
"""By which the process may grow over all cases."""

NUMBERS = (*range(3), *(2**bits + off for bits in (7, 8, 15, 16, 24, 31, 32, 62, 63) for off in (-1, 0)))
RATES = (0, 1, 7, 999, 1000, 8000, 11025, 96000, 655350, 1_000_000, 1_000_001, 2**31 - 1)


@functools.cache
def sounds() -> list[tuple[str, int, bytes]]:
    """(name, rate, bytes) of a short sound in every format, coding and number of channels, and of some joined."""
    made = []
    rng = np.random.default_rng(0)
    for format in sorted(set(soundfile.available_formats()) - {"RAW", "SD2"}):  # no header; two files
        for subtype in soundfile.available_subtypes(format):
            for channels, rate in ((1, 16000), (2, 44100), (1, 8000)):
                sound = 0.3 * np.sin(np.arange(rate // 5) / 9)[:, None] + rng.normal(0, 0.05, (rate // 5, channels))
                file = io.BytesIO()
                try:
                    soundfile.write(file, sound, rate, subtype, format=format)
                except (soundfile.LibsndfileError, ValueError):
                    continue
                made.append((f"{format} {subtype} {channels}", rate, file.getvalue()))
    first = {name.split()[0]: data for name, _, data in made}
    joined = [format for format in ("OGG", "MP3", "FLAC", "WAV") if format in first]
    return made + [(f"{format} joined", 8000, first[format] * 2) for format in joined]


def flip_bits(rng: np.random.Generator, data: bytearray, rate: int) -> bytearray:
    for at in rng.integers(0, len(data), rng.integers(1, 9)):
        data[at] ^= 1 << int(rng.integers(8))
    return data


def truncate(rng: np.random.Generator, data: bytearray, rate: int) -> bytearray:
    return data[: int(rng.integers(1, len(data)))]


def edit_header(rng: np.random.Generator, data: bytearray, rate: int) -> bytearray:
    for at in rng.integers(0, min(len(data), 512), rng.integers(1, 6)):
        data[at] = int(rng.integers(256))
    return data


def edit_length(rng: np.random.Generator, data: bytearray, rate: int) -> bytearray:
    """Some field of the header, of 2 to 8 bytes, at any place, says another number."""
    for _ in range(int(rng.integers(1, 3))):
        format = str(rng.choice([">H", "<H", ">I", "<I", ">Q", "<Q"]))
        width = struct.calcsize(format)
        at = int(rng.integers(0, max(1, min(len(data) - width, 400))))
        number = int(rng.choice(np.array(NUMBERS, np.uint64))) + int(rng.integers(-1, 2))
        data[at : at + width] = struct.pack(format, number % (1 << 8 * width))
    return data


def edit_rate(rng: np.random.Generator, data: bytearray, rate: int) -> bytearray:
    """Where the header says the sample rate, in binary or in decimals, it says another."""
    other = int(rng.choice(RATES))
    for old, new in (
        (struct.pack("<I", rate), struct.pack("<I", other)),
        (struct.pack(">I", rate), struct.pack(">I", other)),
        (struct.pack("<f", rate), struct.pack("<f", other)),
        (struct.pack(">d", rate), struct.pack(">d", other)),
        (str(rate).encode(), str(other).encode()),
    ):
        if 0 <= (at := data.find(old)) < 512:
            data[at : at + len(old)] = new
            return data
    if data[:4] == b"fLaC":  # 20 bits of STREAMINFO
        other %= 1 << 20
        data[18:20], data[20] = (other >> 4).to_bytes(2, "big"), (other & 15) << 4 | data[20] & 15
        return data
    return edit_header(rng, data, rate)


def append_garbage(rng: np.random.Generator, data: bytearray, rate: int) -> bytearray:
    garbage = [b"\xff", b"\0", b"OggS", b"RIFF", b"ID3", b"\xff\xfb\x90\0", b"fLaC\0\0\0\x22", rng.bytes(100)]
    piece = garbage[rng.integers(len(garbage))] if rng.random() < 0.9 else bytes(data)
    return data + (piece * int(rng.integers(1, 200)))[: 1 << 18]


def duplicate(rng: np.random.Generator, data: bytearray, rate: int) -> bytearray:
    """A piece of it stands once more, often, in another place."""
    start, at = (int(place) for place in rng.integers(0, len(data), 2))
    piece = data[start : start + int(rng.integers(1, 300))]
    return data[:at] + piece * int(rng.integers(1, 50)) + data[at:]


def remove(rng: np.random.Generator, data: bytearray, rate: int) -> bytearray:
    start = int(rng.integers(0, len(data)))
    return data[:start] + data[start + int(rng.integers(1, 300)) :] or bytearray(1)


WAYS: tuple[Callable[[np.random.Generator, bytearray, int], bytearray], ...] = (
    flip_bits, truncate, edit_header, edit_length, edit_rate, append_garbage, duplicate, remove,
)  # fmt: skip


def case(seed: int, number: int) -> tuple[str, bytes]:
    """The name and the bytes of a case: every format is damaged in every way in turn, sometimes in two."""
    rng = np.random.default_rng([seed, number])
    name, rate, data = sounds()[number % len(sounds())]
    ways = [WAYS[number // len(sounds()) % len(WAYS)], *([WAYS[rng.integers(len(WAYS))]] if rng.random() < 0.3 else [])]
    damaged = bytearray(data)
    for way in ways:
        damaged = way(rng, damaged, rate)
    return f"{number} ({name}, {' and '.join(way.__name__ for way in ways)})", bytes(damaged)


def load(data: bytes) -> tuple[str, str]:
    """("sound", ""), ("refused", message), or ("unexpected", what was raised)."""
    try:
        with collect_warnings():
            samples = load_audio_bytes(data, "x", max_seconds=MAX_SECONDS)
    except AudioError as error:
        message = str(error)
        wrong = not message.startswith("x: ") or "\n" in message or "/dev/fd" in message or "/tmp" in message
        return ("unexpected", f"the message {message!r}") if wrong else ("refused", message)
    except BaseException as error:
        return "unexpected", f"{type(error).__name__}: {error}"
    if samples.dtype != np.float32 or samples.ndim != 1 or not np.isfinite(samples).all():
        return "unexpected", f"samples {samples.dtype} {samples.shape}"
    return ("unexpected", f"{len(samples)} samples") if len(samples) > MAX_SECONDS * 16000 + 16000 else ("sound", "")


def work(connection: Connection, seed: int) -> None:
    """Loads one case after another, by their numbers; tells the outcome, the seconds, and by how much it has grown."""
    for descriptor in (1, 2):  # decoders print what they think of broken files
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    sounds()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    connection.send(None)
    while (number := connection.recv()) is not None:
        _, data = case(seed, number)
        start = time.perf_counter()
        outcome = load(data)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        connection.send((*outcome, time.perf_counter() - start, grown / 1024))


@dataclasses.dataclass
class Report:
    """Attributes:
    outcomes: how many cases gave a sound, and how many were refused.
    problems: crashes, hangs, and what was raised that is no AudioError, each with its case.
    seconds: of the slowest case. megabytes: by which a process grew at most.
    """

    outcomes: Counter = dataclasses.field(default_factory=Counter)
    problems: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    megabytes: float = 0.0


def flood(seed: int, numbers: range, told: Callable[[int], None] = lambda number: None) -> Report:
    """Loads the cases, in a new process after each that ends one."""
    report, context, process, connection = Report(), multiprocessing.get_context("spawn"), None, None
    for number in numbers:
        if process is None or connection is None:
            connection, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, seed), daemon=True)
            process.start()
            theirs.close()
            connection.recv()
        connection.send(number)
        try:
            if connection.poll(HANG_SECONDS):
                outcome, message, seconds, megabytes = connection.recv()
                report.seconds, report.megabytes = max(report.seconds, seconds), max(report.megabytes, megabytes)
                report.outcomes[outcome] += 1
                if outcome == "unexpected":
                    report.problems.append(f"{case(seed, number)[0]}: {message}")
                if megabytes > MAX_MEGABYTES:
                    report.problems.append(f"{case(seed, number)[0]}: {megabytes:.0f} MB")
                    process.kill()
                    process = None  # the next ones are to be measured afresh
            else:
                report.problems.append(f"{case(seed, number)[0]}: not loaded after {HANG_SECONDS:g} s")
                process.kill()
                process = None
        except (EOFError, ConnectionError):
            process.join()
            report.problems.append(f"{case(seed, number)[0]}: the process ended with code {process.exitcode}")
            process = None
        told(number)
    if process is not None and connection is not None:
        connection.send(None)
        process.join()
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description="Loads thousands of damaged sounds.")
    parser.add_argument("--cases", type=int, default=8 * len(sounds()), help="how many (default: each format each way)")
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="begin with this case (default 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one case, in this process, written to case-NUMBER")
    args = parser.parse_args()
    if args.only is not None:
        name, data = case(args.seed, args.only)
        with open(f"case-{args.only}", "wb") as file:
            file.write(data)
        print(name, *load(data))
        return 0
    start = time.perf_counter()

    def told(number: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{number + 1 - args.first} of {args.cases}", end="", file=sys.stderr)

    report = flood(args.seed, range(args.first, args.first + args.cases), told)
    print(*report.problems, sep="\n")
    print(
        f"{args.cases} damaged sounds of {len(sounds())} kinds in {time.perf_counter() - start:.0f} s: "
        f"{report.outcomes['sound']} read, {report.outcomes['refused']} refused, {len(report.problems)} problems; "
        f"the slowest took {report.seconds:.2f} s, memory grew by {report.megabytes:.0f} MB"
    )
    return int(bool(report.problems))


if __name__ == "__main__":
    sys.exit(main())
