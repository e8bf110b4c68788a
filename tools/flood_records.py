"""Floods the readers of records with broken ones: does any crash, hang, or take all memory?

    .venv/bin/python tools/flood_records.py [--records 1000] [--seed 0] [--only jsonl-swift,parquet,…] [--hang 60]

For every kind of file and every schema that is read, so many records are made, each broken in its own way by the seed
(broken_records.py). Each is written to a file with a good one behind it and goes the way of `stepaudio data check`,
then of `data build`: read, parsed, rendered, counted, stored and read back. What is wanted is a dialogue, or a reason
in one printable line. Anything else that is raised is a fault, shown with its traceback and the numbers that make it
again. Each kind has a process of its own: a crash of a library, or a record that takes longer than --hang seconds, is
counted, and the rest goes on. Exit code 1 for any fault, or more than 1,000 MiB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broken_records import CLIP, broken, schemas, turned

MEMORY_MIB = 1000
"""More than records of a few megabytes may take; what a file of 64 MiB of JSON does, tests/data/test_bounds.py says."""

ROOT = Path(__file__).resolve().parent.parent


class Flood:
    """Makes a file of a kind with a broken record in it, and sends it through the readers.

    Attributes: folder, where files go; kinds, by name what writes one: (a random source, a path without its ending) to
    the path that is read.
    """

    def __init__(self, folder: Path):
        import numpy as np
        import soundfile

        from stepaudio_jax import miniature
        from stepaudio_jax.text import Tokenizer

        self.folder = folder
        soundfile.write(folder / CLIP, (np.sin(np.arange(1600) / 20) / 4).astype(np.float32), 16000)
        self.tokenizer = Tokenizer(miniature.build_tokenizer(512, samples=50))
        self.schemas = schemas((folder / CLIP).read_bytes())
        self.good = self.schemas["sharegpt-pair"]
        self.kinds: dict[str, Callable[[random.Random, Path], Path]] = {
            f"jsonl-{name}": lambda rng, path, name=name: self._lines(rng, path, self.schemas[name])
            for name in self.schemas
        }
        self.kinds |= {
            "json": self._list,
            "parquet": self._parquet,
            "arrayrecord": self._array_record,
            "arrayrecord-samples": self._samples,
            "stored": self._stored,
            "tfds": self._tfds,
        }

    def send(self, kind: str, seed: int, number: int) -> str:
        """A record's way through. Returns "read", "refused", or "file refused". Raises what it should not."""
        from stepaudio_jax.data.check import check
        from stepaudio_jax.data.page import render_page
        from stepaudio_jax.data.records import decode_sample, encode_sample
        from stepaudio_jax.data.samples import RecordError

        path = self.kinds[kind](random.Random(f"{seed}/{kind}/{number}"), self.folder / f"{kind}-{seed}-{number}")
        try:
            findings = check([path], self.tokenizer, roots=[self.folder], max_bad_share=1, workers=1)
        except (ValueError, OSError) as error:
            one_line(str(error))
            return "file refused"
        finally:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        json.dumps(findings.to_json())
        render_page(findings, "flood", "tiny")
        for where, reason in findings.bad:
            one_line(f"{where}: {reason}")
        for sample in findings.audible:
            try:
                back = decode_sample(encode_sample(sample))
            except RecordError as error:
                one_line(str(error))
            else:
                assert [turn.text for turn in back.conversation.turns] == [
                    turn.text for turn in sample.conversation.turns
                ]
        return "refused" if findings.bad else "read"

    def _broken(self, rng: random.Random) -> dict[str, Any]:
        return broken(rng, self.schemas[rng.choice(sorted(self.schemas))])

    def _lines(self, rng: random.Random, path: Path, record: dict[str, Any]) -> Path:
        line = json.dumps(record).encode()
        line = json.dumps(broken(rng, record)).encode() if rng.random() < 0.7 else turned(rng, line)
        path = path.with_suffix(".jsonl")
        path.write_bytes(line + b"\n" + json.dumps(self.good).encode() + b"\n")
        return path

    def _list(self, rng: random.Random, path: Path) -> Path:
        data = json.dumps([self._broken(rng), self.good]).encode()
        path = path.with_suffix(".json")
        path.write_bytes(turned(rng, data) if rng.random() < 0.5 else data)
        return path

    def _parquet(self, rng: random.Random, path: Path) -> Path:
        """Half of them broken records, as far as Arrow can hold them, half broken bytes of the file."""
        import pyarrow
        import pyarrow.parquet

        path, record = path.with_suffix(".parquet"), self._broken(rng)
        try:
            table = pyarrow.Table.from_pylist([record, self.good])
            pyarrow.parquet.write_table(table, path)
        except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):  # values of two types in a column
            columns = {name: json.dumps(value) for name, value in record.items()}
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([columns or {"x": 1}]), path)
        if rng.random() < 0.5:
            path.write_bytes(turned(rng, path.read_bytes()))
        return path

    def _array_record(self, rng: random.Random, path: Path) -> Path:
        data = json.dumps(self._broken(rng)).encode()
        data = turned(rng, data) if rng.random() < 0.3 else data
        return self._shard(rng, path.with_suffix(".arrayrecord"), data, json.dumps(self.good).encode())

    def _samples(self, rng: random.Random, path: Path) -> Path:
        data = self._encoded(rng)
        return self._shard(rng, path.with_suffix(".arrayrecord"), turned(rng, data), data)

    def _encoded(self, rng: random.Random) -> bytes:
        from stepaudio_jax.data.formats import parse
        from stepaudio_jax.data.records import encode_sample
        from stepaudio_jax.data.sounds import Sounds

        record = self.schemas[rng.choice(sorted(self.schemas))]
        return encode_sample(parse(record, Sounds([self.folder]), "flood"))

    def _shard(self, rng: random.Random, path: Path, *records: bytes) -> Path:
        """A file of records, in one of five its own bytes broken."""
        from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        if rng.random() < 0.2:
            path.write_bytes(turned(rng, path.read_bytes()))
        return path

    def _stored(self, rng: random.Random, path: Path) -> Path:
        """A folder as `data build` writes it, with one of its files broken: its JSON, its columns or its shard."""
        from stepaudio_jax.data.build import write_samples
        from stepaudio_jax.data.formats import parse
        from stepaudio_jax.data.pieces import Recipe
        from stepaudio_jax.data.sounds import Sounds

        whole, recipe = self.folder / "whole", self.folder / "tokenizer"
        if not whole.exists():
            recipe.mkdir()
            (recipe / "tokenizer.json").write_text(self.tokenizer.backend.to_str())
            sounds = Sounds([self.folder])
            write_samples(whole, [parse(record, sounds, "x") for record in self.schemas.values()], Recipe(str(recipe)))
        shutil.copytree(whole, path)
        file = rng.choice(sorted(path.iterdir()))
        if file.name == "dataset.json" and rng.random() < 0.7:
            file.write_text(json.dumps(broken(rng, json.loads(file.read_text()))))
        else:
            file.write_bytes(turned(rng, file.read_bytes()))
        return path

    def _tfds(self, rng: random.Random, path: Path) -> Path:
        """A prepared folder with its description, its examples or their shard broken."""
        from tensorflow_datasets.proto import tf_example_pb2

        kind = "tensorflow_datasets.core.features"
        text = {"pythonClassName": f"{kind}.text_feature.Text", "text": {}}
        sound = {"pythonClassName": f"{kind}.audio_feature.Audio", "audio": {"shape": {}, "lazyDecode": True}}
        turn = {"featuresDict": {"features": {"role": text, "content": text}}}
        sequence = {"sequence": {"feature": turn, "length": "-1"}}
        description: dict[str, Any] = {"featuresDict": {"features": {"messages": sequence, "audio": sound, "id": text}}}
        info: dict[str, Any] = {"name": "flood", "splits": [{"name": "train"}]}
        values = {
            "messages/role": [b"user", b"assistant"],
            "messages/content": [b"<audio>Q", b"A"],
            "audio": [(self.folder / CLIP).read_bytes()],
            "id": [b"1"],
        }

        def example(whole: bool) -> bytes:
            made = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
            for name, value in values.items():
                if whole or rng.random() < 0.9:
                    number = len(value) if whole else rng.choice([0, 1, 2, 2, 2])
                    made.features.feature[name].bytes_list.value.extend(value[:number])
            return made.SerializeToString()

        which = rng.randrange(4)
        path.mkdir()
        (path / "dataset_info.json").write_text(json.dumps(broken(rng, info) if which == 0 else info))
        (path / "features.json").write_text(json.dumps(broken(rng, description) if which == 1 else description))
        bad = turned(rng, example(whole=True)) if which == 2 else example(whole=which < 2)
        self._shard(rng, path / "flood-train.array_record-00000-of-00001", bad, example(whole=True))
        return path


def one_line(text: str) -> None:
    assert text and len(text) < 3000 and text.isprintable(), f"expected one printable line, found {text[:3000]!r}"


def work(kind: str, seed: int, start: int, stop: int) -> None:
    """What the process of a kind does: a line of JSON on stdout before each record, and one for what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        flood = Flood(Path(folder))
        flood.send(kind, seed, start)  # what is loaded once is no memory of a record
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(start, stop):
            tell(number=number)
            began = time.perf_counter()
            try:
                result, fault = flood.send(kind, seed, number), ""
            except Exception:
                result, fault = "fault", traceback.format_exc()
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            tell(result=result, fault=fault, seconds=time.perf_counter() - began, peak=peak)


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def watch(kind: str, seed: int, records: int, hang: float) -> dict[str, Any]:
    """Runs a kind, starting a new process behind a record that crashed the last one or hung in it."""
    counts = dict.fromkeys(("read", "refused", "file refused", "fault", "crash", "hang"), 0)
    found: dict[str, Any] = {"kind": kind, **counts, "slowest_s": 0.0, "peak_mib": 0.0, "faults": []}
    at = 0
    while at < records:
        command = [sys.executable, __file__, "--work", kind, str(at), "--records", str(records), "--seed", str(seed)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
            lines: queue.Queue[str | None] = queue.Queue()
            threading.Thread(target=forward, args=(process.stdout, lines), daemon=True).start()
            try:
                while (line := lines.get(timeout=hang)) is not None:
                    said = json.loads(line)
                    if "number" in said:
                        at = said["number"]
                        continue
                    found[said["result"]] += 1
                    at += 1
                    found["slowest_s"] = max(found["slowest_s"], said["seconds"])
                    if said["peak"] > MEMORY_MIB >= found["peak_mib"]:
                        said["fault"] += f"{said['peak']:.0f} MiB of memory"
                    found["peak_mib"] = max(found["peak_mib"], said["peak"])
                    if said["fault"]:
                        found["faults"].append(f"{kind} {seed} {at - 1}: {said['fault']}")
                code = process.wait()
            except queue.Empty:
                process.kill()
                code = "hang"
            if code:
                errors.seek(0)
                found["hang" if code == "hang" else "crash"] += 1
                found["faults"].append(f"{kind} {seed} {at}: {code}\n{errors.read().decode(errors='replace')[-3000:]}")
                at += 1
    return found


def forward(stream: Any, lines: queue.Queue) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1000, help="of each kind (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds, with commas between them; by default all")
    parser.add_argument("--hang", type=float, default=60, help="seconds after which a record is said to hang")
    parser.add_argument("--work", nargs=2, metavar=("KIND", "START"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work[0], args.seed, int(args.work[1]), args.records)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, str(ROOT))
        kinds = list(Flood(Path(folder)).kinds)
    if unknown := {*filter(None, args.only.split(","))} - {*kinds}:
        parser.error(f"--only: expected some of {', '.join(kinds)}, found {', '.join(sorted(unknown))}")
    columns = ("read", "refused", "file refused", "fault", "crash", "hang", "slowest_s", "peak_mib")
    print("kind".ljust(22), *(name.rjust(12) for name in columns))
    bad = 0
    for kind in args.only.split(",") if args.only else kinds:
        found = watch(kind, args.seed, args.records, args.hang)
        print(kind.ljust(22), *(f"{found[name]:12.4g}" for name in columns), flush=True)
        for fault in found["faults"][:5]:
            print(fault, file=sys.stderr)
        bad += len(found["faults"])
    print(f"{bad} faults; peak_mib is above what the process has once everything is loaded")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
