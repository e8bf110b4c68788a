"""Does a judge agree with people? Its verdicts against labelled preferences."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from stepaudio_jax.rl.reward_model.compare import CONTRADICTION, Judged
from stepaudio_jax.rl.reward_model.verdicts import LEVELS, value


@dataclasses.dataclass(frozen=True)
class Agreement:
    """
    Attributes:
      judged: comparisons with a reward. without: those that have none.
      accuracy: of those whose label prefers one, how many the judge's sign agrees with; a tie agrees with none.
      kappa: Cohen's, of worse, equal, better (Educational and Psychological Measurement 20 (1960), 37).
      position_bias: mean of φ over both orders of all comparisons, positive where the first reply is favoured: each
        order's excess has the other sign for a judge that looks at the replies alone.
      contradictions, ties: shares of the judged.
      calibration: of each level of the reply against the reference, how many, and the mean label.
    """

    judged: int
    without: int
    accuracy: float
    kappa: float
    position_bias: float
    contradictions: float
    ties: float
    calibration: dict[str, tuple[int, float]]


def agreement(judged: Sequence[Judged], labels: Sequence[float]) -> Agreement:
    """Args:
    labels: of each comparison, above 0 where the reply is better, 0 where neither is.
    """
    pairs = [(each, label) for each, label in zip(judged, labels, strict=True) if each.reward is not None]
    rewards, truth = np.array([each.reward for each, _ in pairs], float), np.array([label for _, label in pairs], float)
    decided = truth != 0
    agree = np.sign(rewards) == np.sign(truth)
    both = [value(level) for each, _ in pairs for level in each.levels if level is not None]
    by_level = collections.defaultdict(list)
    for each, label in pairs:
        if each.levels[0] is not None:
            by_level[each.levels[0]].append(label)
    return Agreement(
        judged=len(pairs),
        without=len(judged) - len(pairs),
        accuracy=float(agree[decided].mean()) if decided.any() else float("nan"),
        kappa=cohens_kappa(np.sign(rewards), np.sign(truth)),
        position_bias=float(np.mean(both)) if both else float("nan"),
        contradictions=sum(each.outcome == CONTRADICTION for each, _ in pairs) / max(len(pairs), 1),
        ties=float((rewards == 0).mean()) if len(pairs) else float("nan"),
        calibration={name: (len(by_level[name]), float(np.mean(by_level[name]))) for name in LEVELS if by_level[name]},
    )


def cohens_kappa(one: np.ndarray, other: np.ndarray) -> float:
    """How much more two ways of sorting agree than by chance; nan where chance alone would agree always."""
    if not len(one):
        return float("nan")
    chance = sum(float((one == kind).mean() * (other == kind).mean()) for kind in np.union1d(one, other))
    return float("nan") if chance >= 1 else (float((one == other).mean()) - chance) / (1 - chance)
