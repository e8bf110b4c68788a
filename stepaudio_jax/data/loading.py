"""From a sample to the examples that stand in a row: rendered, cut to fit, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.examples import Example, encode
from stepaudio_jax.data.lengths import Rendering
from stepaudio_jax.data.mixture import Mixture
from stepaudio_jax.data.samples import RecordError, Sample
from stepaudio_jax.data.set_aside import DataError, SetAside, Unusable
from stepaudio_jax.data.truncation import truncate
from stepaudio_jax.text import Tokenizer


def check_lengths(mixture: Mixture, tokenizer_sha256: str, render_options: Mapping[str, Any]):
    """Raises DataError for a source whose lengths were stored for another tokenizer or other options than the run's."""
    for source in mixture.sources:
        where, info = f"sources.{source.name}", source.dataset.info
        if missing := [name for name in ("tokenizer_sha256", "rendering") if name not in info]:
            raise DataError(f"{where}: its dataset.json has no {missing[0]}; build the data set again")
        if info["tokenizer_sha256"] != tokenizer_sha256:
            raise DataError(
                f"{where}: expected lengths of the run's tokenizer (sha256 {tokenizer_sha256[:12]}…), found those of "
                f"another ({info['tokenizer_sha256'][:12]}…); build the data set with the run's --tokenizer"
            )
        rendering = Rendering(**{name: value for name, value in render_options.items() if name in info["rendering"]})
        for name, value in dataclasses.asdict(rendering).items():
            if info["rendering"][name] != value:
                raise DataError(
                    f"{where}: expected lengths with {name}={value} as in the run, found {info['rendering'][name]}; "
                    "build the data set again, or change the run"
                )


def render_sample(sample: Sample, tokenizer: Tokenizer, render_options: Mapping[str, Any]) -> list[Example]:
    """The example of a sample; of a preference, the better and the worse one.

    Raises:
      Unusable: it cannot be rendered.
    """
    conversations = [sample.conversation] + ([sample.rejected] if sample.rejected else [])
    try:
        return [encode(conversation, tokenizer, **render_options) for conversation in conversations]
    except ValueError as error:
        raise Unusable("cannot be rendered", f"{sample.where}: {error}") from None


def fit(examples: list[Example], row_tokens: int, where: str) -> list[Example]:
    """The examples of one sample cut so that they fit a row together: of a preference, each may have half of it and
    what the other leaves.

    Raises:
      Unusable: nothing that is trained on is left of one of them.
    """
    total = sum(example.num_tokens for example in examples)
    share = row_tokens // len(examples)
    cut = [truncate(each, max(share, row_tokens - (total - each.num_tokens))) for each in examples]
    if not all(example.rendered.loss_mask.any() for example in cut):
        what = f" in the first {row_tokens} of its {total} tokens" if total > row_tokens else ""
        raise Unusable("nothing to train on", f"{where}: expected trained tokens, found none{what}")
    return cut


@dataclasses.dataclass(frozen=True)
class Loader:
    """Loads planned rows.

    Attributes: render_options, those of `data.encode`; set_aside, where bad records are counted.
    """

    mixture: Mixture
    tokenizer: Tokenizer
    render_options: Mapping[str, Any]
    set_aside: SetAside

    def row(self, items: list[tuple[int, int]]) -> list[Example]:
        """The examples of a row's (source, record); a bad record leaves its place empty, so no other one moves."""
        row = []
        for source, record in items:
            try:
                row += self._load(source, record)
            except Unusable as error:
                self.set_aside.bad(error)
            else:
                self.set_aside.good()
        return row

    def _load(self, source: int, record: int) -> list[Example]:
        dataset = self.mixture.sources[source].dataset
        try:
            sample = dataset[record]
        except RecordError as error:
            raise Unusable("cannot be read", str(error)) from None
        examples = render_sample(sample, self.tokenizer, self.render_options)
        planned = [int(dataset.tokens[record]), int(dataset.rejected_tokens[record])]
        found = [example.num_tokens for example in examples]
        if found + [0] * (2 - len(found)) != planned:
            raise Unusable("length differs", f"{sample.where}: expected {planned} tokens as stored, found {found}")
        examples = fit(examples, self.mixture.row_tokens, sample.where)
        return [dataclasses.replace(example, source=source, record=record) for example in examples]
