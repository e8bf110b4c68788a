"""`stepaudio data build` and reading what it wrote: speed and memory, on one process and on two.

    .venv/bin/python -m benchmarks.data_build [--records 100000] [--folder DIR] [--quick]

Times are of whole commands, start-up and counting of the input in them; CPU seconds are those of all processes and
threads together, which other work on the machine does not change. Memory is the peak of the resident sizes of
the command and its workers together, sampled every 0.2 s; pages that they share count twice. Reading takes records in
random order from one StoredDataset, with all sound decoded to samples; the page cache holds what was just written.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.synthetic_data import write_synthetic
from stepaudio_jax.data.stored import StoredDataset

READ = 20_000
"""Records that are read; a sample is enough."""


def resident(pid: int) -> float:
    """MB that a process and its children hold."""
    try:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # gone
        return 0.0
    own = next((int(line.split()[1]) / 1e3 for line in status if line.startswith("VmRSS")), 0.0)
    return own + sum(resident(int(child)) for child in children)


def run(command: list[str]) -> tuple[float, float, float]:
    """Seconds, CPU seconds, and the peak of resident memory in MB."""
    start, used, peak = time.perf_counter(), children_cpu(), 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - start, children_cpu() - used, peak


def children_cpu() -> float:
    """CPU seconds of the processes that have ended, theirs in turn included."""
    times = os.times()
    return times.children_user + times.children_system


def read(stored: StoredDataset, threads: int) -> tuple[int, float, float, float]:
    """Records read, their seconds of sound, and the seconds and CPU seconds that took."""
    order = np.random.default_rng(0).permutation(len(stored))[:READ]
    heard, lock = 0.0, threading.Lock()

    def some(indices):
        nonlocal heard
        found = sum(clip.seconds for i in indices for clip in stored[int(i)].conversation.audio)
        with lock:
            heard += found

    start, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, np.array_split(order, threads)))
    return len(order), heard, time.perf_counter() - start, time.process_time() - used


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--folder", help="where to work; by default a temporary folder")
    parser.add_argument("--quick", action="store_true", help="500 records: does it run at all")
    args = parser.parse_args()
    records = 500 if args.quick else args.records
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        source = write_synthetic(folder / "source", records)
        rows = []
        for workers in (1, 2):
            out = folder / f"stored-{workers}"
            command = [sys.executable, "-m", "stepaudio_jax.cli", "data", "build", str(source), "--out", str(out)]
            seconds, cpu, peak = run([*command, "--workers", str(workers)])
            stored = StoredDataset(out)
            heard = stored.info["seconds_of_sound"]
            rows.append((f"build, --workers {workers}", records, heard, seconds, cpu, f"{peak:.0f}"))
        size = sum(file.stat().st_size for file in out.iterdir()) / 1e9
        for threads in (1, 2):
            rows.append((f"read, {threads} thread{'s' * (threads > 1)}", *read(stored, threads), ""))
    title = f"{records} records, {heard / 3600:.1f} h of sound: {size:.2f} GB stored"
    table = Table("", "records/s", "× real time", "seconds", "CPU seconds", "peak memory, MB", title=title)
    for name, number, heard, seconds, cpu, peak in rows:
        table.add_row(name, f"{number / seconds:.0f}", f"{heard / seconds:.0f}", f"{seconds:.1f}", f"{cpu:.1f}", peak)
    Console(width=118).print(table)


if __name__ == "__main__":
    main()
