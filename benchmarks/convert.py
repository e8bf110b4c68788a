"""Conversion of a synthetic checkpoint of true 33B width: memory and speed, beside a plain `cp` of the same files.

    make bench, or: .venv-parity/bin/python -m benchmarks.convert [--layers 2 4] [--folder DIR] [--quick]

Peak memory is RssAnon of the converting process, sampled every 10 ms, above that of an interpreter that has imported
all the converter imports and done nothing: mapped source files do not count, which the system may drop at any time.
`cp` and the conversions take turns, each after its source was read once, so that all find it in the page cache alike,
and each is timed until `sync` returns. Needs four times the checkpoint's size on the disk:
26 GB for two layers, 34 for four.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

COMMAND = [sys.executable, "-m", "checkpoints_convert"]
IDLE = "import checkpoints_convert.from_hf, checkpoints_convert.to_hf, sys; sys.stdin.read()"


def anonymous(pid: int) -> float:
    """RssAnon of a process in GB; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e6 for line in lines if line.startswith("RssAnon")), 0.0)


def run(command: list[str]) -> tuple[float, float]:
    """Seconds until the result is on the disk, and the peak of RssAnon in GB."""
    subprocess.run(["sync"], check=True)
    start, peak, ended = time.perf_counter(), 0.0, threading.Event()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def watch():
        nonlocal peak
        while not ended.wait(0.01):
            peak = max(peak, anonymous(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    subprocess.run(["sync"], check=True)
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return seconds, peak


def idle() -> float:
    process = subprocess.Popen([sys.executable, "-c", IDLE], stdin=subprocess.PIPE)
    time.sleep(8)
    found = anonymous(process.pid)
    process.communicate(b"")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", help="where to work; by default a temporary folder")
    parser.add_argument("--quick", action="store_true", help="the tiny preset, once: does it run at all")
    args = parser.parse_args()
    base = idle()
    table = Table(title=f"bfloat16, median of {args.repeat}; the idle interpreter holds {base:.2f} GB")
    for column in ("layers", "GB", "", "seconds", "GB/s", "of cp", "peak memory above idle, GB"):
        table.add_column(column, justify="right" if column else "left")
    for layers in [2] if args.quick else args.layers:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            source, ours, back, copy = (folder / part for part in ("hf", "ours", "back", "copy"))
            preset = ["--preset", "tiny" if args.quick else "33b", "--set", f"text_config.num_hidden_layers={layers}"]
            subprocess.run([*COMMAND, "synth", str(source), *preset], check=True, stderr=subprocess.DEVNULL)
            size = sum(file.stat().st_size for file in source.iterdir()) / 1e9
            commands = {
                "cp": (["cp", "-r", str(source), str(copy)], copy),
                "from-hf": ([*COMMAND, "from-hf", str(source), str(ours)], ours),
                "to-hf": ([*COMMAND, "to-hf", str(ours), str(back)], back),
            }
            times = {kind: [] for kind in commands}
            peaks = {kind: 0.0 for kind in commands}
            for _ in range(1 if args.quick else args.repeat):
                for kind, (command, result) in commands.items():
                    shutil.rmtree(result, ignore_errors=True)
                    subprocess.run("cat hf/*.safetensors > /dev/null", shell=True, cwd=folder, check=True)
                    seconds, peak = run(command)
                    times[kind].append(seconds)
                    if kind != "from-hf":  # to-hf reads it; what is over leaves the page cache to the next
                        shutil.rmtree(result)
                    peaks[kind] = max(peaks[kind], peak)
            seconds = {kind: statistics.median(found) for kind, found in times.items()}
            for kind in commands:
                memory = "" if kind == "cp" else f"{peaks[kind] - base:.2f}"
                rate, share = f"{size / seconds[kind]:.2f}", f"{seconds['cp'] / seconds[kind]:.2f}×"
                table.add_row(str(layers), f"{size:.2f}", kind, f"{seconds[kind]:.1f}", rate, share, memory)
    Console(width=118).print(table)


if __name__ == "__main__":
    main()
