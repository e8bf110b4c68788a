"""The model's own replies, sorted: those worth learning from, and why not the others (R1 §4.2, equations 3 and 4)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from rich.console import Console

from stepaudio_jax.data.samples import Sample
from stepaudio_jax.inference import Engine
from stepaudio_jax.rl.ask import Asking, ask_all
from stepaudio_jax.rl.filter import are_right
from stepaudio_jax.rl.grounding import Judge, Rules
from stepaudio_jax.rl.prompts import Source
from stepaudio_jax.rl.rollout import Prompt, Sampled
from stepaudio_jax.rl.scoring import Score
from stepaudio_jax.text import Conversation, assistant

KEPT = "kept"

UNFINISHED, WRONG, UNSCORED = "not finished", "wrong answer", "answer not scored"
SURROGATE, NO_EVIDENCE = "reasons from a text", "names nothing heard"
UNREADABLE, UNGROUNDED, INCOHERENT = "verdict not readable", "heard what was not there", "answer does not follow"
ENOUGH = "enough of this question"
REASONS = (UNFINISHED, WRONG, UNSCORED, SURROGATE, NO_EVIDENCE, UNREADABLE, UNGROUNDED, INCOHERENT, ENOUGH)
"""Why a reply is dropped: the first of these that holds."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A reply to a prompt of a source, and what became of it: "kept", or one of REASONS."""

    source: str
    record: int
    think: str
    answer: str
    outcome: str


def distil(
    engine: Engine,
    sources: Sequence[Source],
    score: Score,
    judge: Judge,
    folder: epath.PathLike,
    asking: Asking,
    *,
    rules: Rules,
    most: int = 1,
    records: Mapping[str, Sequence[int]] | None = None,
    console: Console | None = None,
) -> list[Found]:
    """Samples replies and keeps, of each prompt, at most so many that are right, name what they heard, heard what was
    there and conclude from it.

    Args:
      most: kept of a prompt.
      records: as `ask_all`, whose folder this is.
    """

    def digest(prompts: Sequence[Prompt], replies: Sequence[Sequence[Sampled]]) -> list[dict[str, Any]]:
        right = are_right(score, prompts, replies)
        outcomes = [
            [_by_rules(each, ok, rules) for each, ok in zip(own, oks, strict=True)]
            for own, oks in zip(replies, right, strict=True)
        ]
        left = [(i, j) for i, own in enumerate(outcomes) for j, outcome in enumerate(own) if outcome == KEPT]
        verdicts = judge([prompts[i] for i, _ in left], [replies[i][j] for i, j in left])
        for (i, j), verdict in zip(left, verdicts, strict=True):
            outcomes[i][j] = _by_judge(verdict)
        return [
            {"replies": [[r.think, r.answer, o] for r, o in zip(own, _first(decided, most), strict=True)]}
            for own, decided in zip(replies, outcomes, strict=True)
        ]

    lines = ask_all(engine, sources, asking, digest, folder, records=records, what="distil", console=console)
    return [Found(line["source"], line["record"], *reply) for line in lines for reply in line["replies"]]


def _by_rules(sampled: Sampled, right: bool | None, rules: Rules) -> str:
    if not sampled.complete or sampled.truncated or not sampled.think.strip():
        return UNFINISHED
    if right is None:
        return UNSCORED
    if not right:
        return WRONG
    if rules.is_surrogate(sampled.think):
        return SURROGATE
    return KEPT if rules.names_evidence(sampled.think) else NO_EVIDENCE


def _by_judge(verdict) -> str:
    if verdict.grounded is None or verdict.coherent is None:
        return UNREADABLE
    if not verdict.grounded:
        return UNGROUNDED
    return KEPT if verdict.coherent else INCOHERENT


def _first(outcomes: Sequence[str], most: int) -> list[str]:
    """The first so many stay kept."""
    kept, left = [], most
    for outcome in outcomes:
        if outcome == KEPT:
            outcome, left = (KEPT, left - 1) if left else (ENOUGH, 0)
        kept.append(outcome)
    return kept


def counts(found: Sequence[Found]) -> dict[str, int]:
    """How many replies had which outcome, kept first."""
    tally = collections.Counter(each.outcome for each in found)
    return {name: tally[name] for name in (KEPT, *REASONS) if tally[name]}


def examples(found: Sequence[Found], each: int = 3) -> dict[str, list[dict[str, Any]]]:
    """Some of each outcome, for people to look at."""
    chosen: dict[str, list[dict[str, Any]]] = {}
    for reply in found:
        if len(own := chosen.setdefault(reply.outcome, [])) < each:
            own.append(dataclasses.asdict(reply))
    return chosen


def to_samples(found: Sequence[Found], sources: Sequence[Source]) -> list[Sample]:
    """What was kept, as dialogues to learn from."""
    by_name = {source.name: source for source in sources}

    def sample(each: Found) -> Sample:
        asked = by_name[each.source].prompt(each.record).conversation
        return Sample(with_reply(asked, each.think, each.answer), where=f"{each.source}:{each.record}")

    return [sample(each) for each in found if each.outcome == KEPT]


def with_reply(asked: Conversation, think: str, answer: str) -> Conversation:
    """The dialogue with a reply at its end."""
    return dataclasses.replace(asked, turns=(*asked.turns, assistant(answer, think=think)))
