"""Think-incomplete data: answer in full from reasoning that stops early (RECIPE §2, Mind-Paced Speaking).

Of the last reply's reasoning the first L paragraphs are kept, L drawn evenly from none to all, the block is closed,
and the whole response follows, so that a model learns to speak while its thoughts are still being written. What is
spoken cannot show Markdown: dialogues whose response has any are left out. The loss stays on the whole turn, also on
what is kept of the reasoning.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from stepaudio_jax.data.samples import Sample

_MARKDOWN = re.compile(
    r"^\s*(#{1,6}\s|[-*+•]\s|\d+[.)]\s|>\s|\|.*\||```|~~~|([-*_]\s*){3,}$)"  # headings, lists, quotes, tables, rules
    r"|\*\*\S|__\S.*__|`[^`]+`|!?\[[^\]]+\]\([^)]+\)|\*\S[^*\n]*\S\*|\\[(\[]|\$\$",  # emphasis, code, links, formulas
    re.MULTILINE,
)


class LeftOut(ValueError):
    """A sample that this kind of training has no use for; the message is the reason, equal for equal reasons."""


@dataclasses.dataclass(frozen=True)
class ThinkIncomplete:
    """What `data build` does to each sample: `copies` of it, each cut at its own place, a function of seed and index.

    Raises:
      LeftOut: no reasoning, or Markdown or a list in the response.
    """

    seed: int
    copies: int = 1

    def __call__(self, sample: Sample, index: int) -> list[Sample]:
        return [think_incomplete(sample, self.seed, index, copy) for copy in range(self.copies)]


def think_incomplete(sample: Sample, seed: int, index: int, copy: int) -> Sample:
    """The sample with the reasoning of its last turn cut; `index` is the sample's number in the data set.

    Raises:
      LeftOut: no reasoning, or Markdown or a list in the response.
    """
    turn = sample.conversation.turns[-1]
    if not turn.think or not turn.think.strip():
        raise LeftOut("no reasoning in the last turn")
    if _MARKDOWN.search(turn.text):
        raise LeftOut("Markdown or a list in the response")
    pieces = re.split(r"(\n\s*\n)", turn.think.strip())  # paragraphs, and the blank lines between them
    kept = int(np.random.default_rng([seed, index, copy]).integers((len(pieces) + 1) // 2 + 1))
    cut = dataclasses.replace(turn, think="".join(pieces[: max(0, 2 * kept - 1)]) or None)
    conversation = dataclasses.replace(sample.conversation, turns=(*sample.conversation.turns[:-1], cut))
    return dataclasses.replace(sample, conversation=conversation, rejected=None)
