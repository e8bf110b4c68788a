"""A process of a run to be killed: `python -m tests.data.pipeline_process FILE ROW…` loads these rows of every batch.

It writes a line per batch to FILE, digests of its rows and the state after it, and goes on after the last whole line.
"""

import hashlib
import json
import sys
from pathlib import Path

from stepaudio_jax.data.mixture import Mixture, Source
from stepaudio_jax.data.pipeline import PackedBatches
from tests import small
from tests.data.memory import SHA256, dialogues, look

BATCH_ROWS = 4


def digests(rows) -> list[str]:
    return [hashlib.sha256(repr(row).encode()).hexdigest() for row in look(rows)]


def pipeline(rows: list[int] | None = None) -> PackedBatches:
    mixture = Mixture([Source("a", dialogues(60, 1), 2), Source("b", dialogues(50, 2))], row_tokens=160)
    options = {"batch_rows": BATCH_ROWS, "rows": rows, "seed": 3, "window": 40}
    return PackedBatches(mixture, small.tokenizer(), SHA256, digests, **options)


def whole_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def main(file: Path, rows: list[int]):
    source = pipeline(rows)
    done = whole_lines(file)
    file.write_text("".join(json.dumps(line) + "\n" for line in done))
    if done:
        source.restore(done[-1]["state"])
    with file.open("a") as out:
        for batch in source:
            print(json.dumps({"rows": batch, "state": source.state()}), file=out, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(row) for row in sys.argv[2:]])
