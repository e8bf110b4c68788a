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
        ("1 loud low pure tone\n2 soft noise burst\n3 loud rising chirp\nChirps: 1. So 1.", (3, 3, 3)),
        ("1 loud low hollow tone\n2 soft noise burst\n3 soft rising chirp", (3, 3, 1)),
        ("1 loud low pure tone\n2 soft noise burst", (3, 2, 2)),
        ("1 loud low pure tone\n2 soft noise burst\n3 loud rising chirp\n4 soft ah vowel", (4, 3, 3)),
        ("1 soft noise burst\n2 loud low pure tone\n3 loud rising chirp", (3, 1, 1)),
        ("", (3, 0, 0)),
        ("tone tone tone", (3, 0, 0)),
        ("1\n2 \n3 .", (3, 0, 0)),
        ("1 loud baritone\n2 soft noise\n3 rising chirp.", (3, 1, 0)),
    ],
)
def test_events_are_matched_one_by_one(think, expected):
    assert score_events(f"I hear:\n{think}", scene()) == expected


def test_descriptions_are_read_in_order():
    assert parse_events("Well.\n7 no\nI hear:\n1 a\n2 b c.\n3 d\nThe 2 is: 4 more.") == ["a", "b c", "d"]
    assert parse_events("1 loud low pure tone") == []
