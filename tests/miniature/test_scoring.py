"""Scoring of answers and of what a reasoning trace says it heard."""

import numpy as np
import pytest

from stepaudio_jax.miniature import arrange, is_correct, parse_events, random_event, score_events


@pytest.mark.parametrize(
    ("said", "truth", "right"),
    [
        ("2", "2", True),
        (" 2. ", "2", True),
        ("The  First", "the first", True),
        ("first", "the first", True),
        ("Noise burst.", "noise burst", True),
        ("the second", "the first", False),
        ("", "2", False),
        ("22", "2", False),
        ("2 or 3", "2", False),
    ],
)
def test_answers(said, truth, right):
    assert is_correct(said, truth) is right


def scene():
    rng = np.random.default_rng(0)
    events = [
        random_event(rng, "tone", loudness="loud", pitch="low", trait="pure"),
        random_event(rng, "noise burst", loudness="soft"),
        random_event(rng, "chirp", loudness="loud", trait="rising"),
    ]
    return arrange(rng, events)


@pytest.mark.parametrize(
    ("think", "expected"),
    [
        ("I hear: loud low pure tone, soft noise burst, loud rising chirp. So 1.", (3, 3, 3)),
        ("I hear: loud low hollow tone, soft noise burst, soft rising chirp.", (3, 3, 1)),
        ("I hear: loud low pure tone, soft noise burst", (3, 2, 2)),
        ("I hear: loud low pure tone, soft noise burst, loud rising chirp, soft ah vowel.", (4, 3, 3)),
        ("I hear: soft noise burst, loud low pure tone, loud rising chirp.", (3, 1, 1)),
        ("", (3, 0, 0)),
        ("tone tone tone", (3, 0, 0)),
        ("I hear: , , .", (3, 0, 0)),
        ("I hear: loud baritone, soft noise, rising chirp.", (3, 1, 0)),
    ],
)
def test_events_are_matched_one_by_one(think, expected):
    assert score_events(think, scene()) == expected


def test_descriptions_are_read_in_order():
    assert parse_events("Well. I hear: a, b c,d. Then, more.") == ["a", "b c", "d"]
