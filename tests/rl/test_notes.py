"""What is counted about a value: a reply that cannot be evaluated within limits is wrong, and no error."""

import pytest

from stepaudio_jax.rl.rewards import Reward, RewardRunner, Sample, Scored, summarise
from stepaudio_jax.rl.rollout import Prompt, Sampled
from stepaudio_jax.rl.scoring import score
from stepaudio_jax.text import Conversation, human

TOWER = "\\boxed{9^{9^{9^9}}}"


def sample(answer, truth="5") -> Sample:
    return Sample("I hear it.", answer, True, False, truth)


def test_what_is_over_the_limits_is_wrong_and_counted_not_masked():
    audio = Reward("audio", {"accuracy": "maths"})
    samples = [sample(TOWER), sample("\\boxed{6}"), sample("5"), sample("5", "\\boxed{}")]
    with RewardRunner(workers=1) as runner:
        scored = runner.score([*samples, *samples], ["maths"] * 4 + [audio] * 4)
    over = ("over_limits",)
    assert scored[:3] == [Scored(0.0, notes=over), Scored(0.0), Scored(1.0)]
    assert scored[4:7] == [Scored(0.2, notes=over), Scored(0.2), Scored(1.0)]  # as a wrong answer, not better
    assert scored[3].kind == scored[7].kind == "raised" and "truth: expected" in str(scored[3].error)
    assert [each.notes for each in summarise(scored[:4], "maths")] == [{"over_limits": 1}]


def test_shares_of_notes_are_among_the_metrics():
    prompt = Prompt(Conversation((human("How many?"),)), "5", "toy", "maths")
    replies = [Sampled(0, n, (1,), (-0.1,), "", answer, True, False) for n, answer in enumerate((TOWER, "5"))]
    with RewardRunner(workers=1) as runner:
        values, valid, shares = score(runner, [prompt, prompt], replies)
    assert values.tolist() == [0.0, 1.0] and valid.all() and shares == {"reward_notes/over_limits": 0.5}


def test_a_note_is_of_a_known_kind():
    with pytest.raises(ValueError, match="notes: expected some of over_limits"):
        Scored(1.0, notes=("lazy",))
