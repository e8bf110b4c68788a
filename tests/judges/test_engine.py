"""A checkpoint of ours as a judge: the shipped tiny model, which can at least answer."""

import numpy as np
import pytest

from stepaudio_jax import miniature
from stepaudio_jax.inference.options import EngineOptions
from stepaudio_jax.inference.session import load_engine
from stepaudio_jax.judges import EngineJudge, Question
from stepaudio_jax.text import Conversation, human


@pytest.fixture(scope="module")
def judge():
    return EngineJudge(load_engine("tiny", options=EngineOptions(max_rows=4, max_length=256, pages=128)), "tiny")


def test_it_hears_and_answers_in_order(judge):
    asked = [miniature.make_question(np.random.default_rng(i), "direction", max_events=1) for i in range(3)]
    replies = judge([Question(each.prompt, 160) for each in asked])
    assert sum(reply.text == each.answer for reply, each in zip(replies, asked, strict=True)) >= 2
    assert judge.counters.asked == 3 and judge.counters.reply_tokens > 20 and not judge.counters.errors


def test_what_cannot_be_asked_or_is_cut_off_has_no_answer(judge):
    prompt = miniature.make_question(np.random.default_rng(0), "direction", max_events=1).prompt
    judge.counters.errors.clear()
    long, short, whole = judge(
        [Question(Conversation((human("la " * 500),))), Question(prompt, 3), Question(prompt, 160)]
    )
    assert long.error.startswith("prompt too long: ") and short.error == "cut off" and whole.text
    assert judge.counters.errors == {"prompt too long": 1, "cut off": 1}
