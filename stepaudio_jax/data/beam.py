"""`data build` for sets that outgrow one machine: the same records, made by a Beam pipeline of a TFDS builder.

Any Beam runner may work on the pieces (pieces.py). TensorFlow Datasets sorts what they make into shards below
OUT/stored/, each record in a `tf.train.Example` with its columns, which TFDS reads too; the folder gets columns and
dataset.json like every other, and StoredDataset reads it. Files and sounds must have the same paths on all workers.

    build(["gs://bucket/a.jsonl"], "gs://bucket/stored", recipe, runner=DataflowRunner(), options=PipelineOptions(…))

Needs the extra `beam`, which does without TensorFlow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from stepaudio_jax.data import stored
from stepaudio_jax.data.build import finish, prepare
from stepaudio_jax.data.pieces import Piece, Recipe, new_report, records_of, write_whole

SPLIT = "train"


def build(
    paths: Sequence[epath.PathLike],
    out: epath.PathLike,
    recipe: Recipe,
    *,
    records_per_piece: int = 1000,
    num_shards: int | None = None,
    runner: Any = None,
    options: Any = None,
) -> dict[str, Any]:
    """Writes a stored data set by Beam. Returns its dataset.json.

    Args:
      records_per_piece: of input, worked on together.
      num_shards: by default as many as TFDS finds fit.
      runner, options: of Beam; by default its DirectRunner.

    Raises: as data.build.build, except that bad records are only counted.
    """
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(f'{error.name} is not installed: pip install "stepaudio-jax[beam]"') from None
    out = epath.Path(out)
    begun, pieces = prepare(paths, out, recipe, records_per_piece)
    if (out / stored.INFO).exists():
        return stored.read_info(out)
    made = _builder(pieces, out, recipe)
    made.download_and_prepare(
        file_format="array_record",
        download_config=tfds.download.DownloadConfig(
            num_shards=num_shards,
            beam_runner=runner or beam.runners.DirectRunner(),
            beam_options=options or beam.options.pipeline_options.PipelineOptions(),
        ),
    )
    split = made.info.splits[SPLIT]
    shards = [
        {"name": str(epath.Path(path).relative_to(out)), "records": records, "wrapped": stored.WRAPPED}
        for path, records in zip(split.filepaths, split.shard_lengths, strict=True)
    ]
    return finish(out, recipe, pieces, begun, shards)


def examples_of(piece: Piece, out: epath.Path, recipe: Recipe) -> Iterator[tuple[int, dict[str, Any]]]:
    """(key, features) of the records of a piece, keys in the order of the input; then its report is written."""
    report = new_report()
    first = piece.first * (recipe.transform.copies if recipe.transform else 1)
    for i, data in enumerate(records_of(piece, recipe, report)):
        columns = {name: values[-1] for name, values in report["columns"].items()}
        yield first + i, {stored.WRAPPED: data, **columns}
    write_whole(out / piece.report, json.dumps(report).encode())


def _builder(pieces: list[Piece], out: epath.Path, recipe: Recipe) -> Any:
    """A TFDS builder of these pieces. Its class is made here, since only this function imports the library."""
    import apache_beam as beam  # pyright: ignore[reportMissingImports]
    import tensorflow_datasets as tfds

    class Stored(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(f"{stored.VERSION}.0.0")

        def _info(self):
            columns = {name: tfds.features.Scalar(dtype) for name, dtype in stored.COLUMNS.items()}
            record = tfds.features.Tensor(shape=(), dtype=np.bytes_)
            features = tfds.features.FeaturesDict({stored.WRAPPED: record, **columns})
            return self.dataset_info_from_configs(features=features, disable_shuffling=True, description=__doc__)

        def _split_generators(self, dl_manager):
            return {SPLIT: self._generate_examples()}

        def _generate_examples(self):
            return beam.Create(pieces) | beam.Reshuffle() | beam.FlatMap(examples_of, out, recipe)

    return Stored(data_dir=str(out))
