"""Counts of what a batch of rewards came to, by reward and by source."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from stepaudio_jax.rl.rewards.registry import AnyReward, Reward, spread
from stepaudio_jax.rl.rewards.sample import Scored


@dataclasses.dataclass(frozen=True)
class Summary:
    """Samples of one reward and source.

    Attributes:
      n: all of them; those of `errors` are among them.
      mean: of the values there are; nan without any.
      errors: how many of each kind (ERROR_KINDS).
      notes: how many of the values have each note (NOTES).
    """

    reward: str
    source: str
    n: int
    mean: float
    errors: Mapping[str, int]
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)


def summarise(
    scored: Sequence[Scored],
    rewards: AnyReward | Sequence[AnyReward],
    sources: str | Sequence[str] = "all",
) -> list[Summary]:
    """One summary for each reward and source, sorted.

    Args:
      rewards: as given to `RewardRunner.score`.
      sources: where each sample is from, or all of them.

    Raises:
      ValueError: as many rewards or sources as there are samples were expected, and not found.
    """
    labels = [Reward.of(reward).label for reward in spread(rewards, len(scored), "rewards")]
    groups: dict[tuple[str, str], list[Scored]] = {}
    for label, source, each in zip(labels, spread(sources, len(scored), "sources"), scored, strict=True):
        groups.setdefault((label, source), []).append(each)
    summaries = []
    for (label, source), members in sorted(groups.items()):
        values = [each.value for each in members if each.value is not None]
        mean = math.fsum(values) / len(values) if values else math.nan
        errors = Counter(each.kind for each in members if each.kind is not None)
        notes = Counter(note for each in members for note in each.notes)
        summaries.append(
            Summary(label, source, len(members), mean, dict(sorted(errors.items())), dict(sorted(notes.items())))
        )
    return summaries
