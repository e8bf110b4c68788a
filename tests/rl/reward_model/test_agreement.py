"""Figures of agreement, by hand."""

import math

import numpy as np
import pytest

from stepaudio_jax.rl.reward_model import Judged, agreement
from stepaudio_jax.rl.reward_model.agreement import cohens_kappa


def judged(reward, forth="equal", back="equal", outcome="read"):
    return Judged(reward, (forth, back), outcome, ("", ""))


def test_figures_of_a_few_comparisons():
    found = agreement(
        [
            judged(0.5, "better", "worse"),
            judged(-1.0, "much worse", "much better"),
            judged(0.0, "better", "better", "contradiction"),
            judged(0.5, "better", "worse"),
            judged(None, None, "better", "unreadable"),
        ],
        [1, -1, -1, 0, 1],
    )
    assert (found.judged, found.without) == (4, 1)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.contradictions == 0.25 and found.ties == 0.25
    assert found.position_bias == pytest.approx((0.5 - 0.5 - 1 + 1 + 0.5 + 0.5 + 0.5 - 0.5) / 8)
    assert found.calibration == {"much worse": (1, -1.0), "better": (3, 0.0)}


def test_kappa_by_the_example_of_its_textbook():
    """Twenty yes and fifteen no that both say, five and ten that they differ about: kappa 0.4."""
    one = np.array([1] * 20 + [1] * 5 + [0] * 10 + [0] * 15)
    other = np.array([1] * 20 + [0] * 5 + [1] * 10 + [0] * 15)
    assert cohens_kappa(one, other) == pytest.approx(0.4)
    assert cohens_kappa(one, one) == 1
    assert math.isnan(cohens_kappa(np.ones(3), np.ones(3)))


def test_nothing_to_say_of_nothing():
    found = agreement([], [])
    assert found.judged == 0 and math.isnan(found.accuracy) and found.calibration == {}
