"""The process that compares expressions: its limits, who is to blame, and that it is always there again."""

import os
import signal
import threading

import pytest

from stepaudio_jax.scoring import evaluation
from stepaudio_jax.scoring.evaluation import Evaluator

SLOW = "\\int_0^{10^{10}} x^{x^x} dx"


@pytest.fixture(scope="module")
def evaluator():
    evaluator = Evaluator(processor_seconds=1)
    yield evaluator
    evaluator.close()


def test_what_was_said_goes_over_the_limit_and_the_next_is_compared(evaluator):
    assert evaluator.are_equal("2x", "x+x") is True
    assert evaluator.are_equal("5", SLOW) is None
    assert evaluator.are_equal("2x", "x+x") is True
    assert evaluator.are_equal("2x", "3x") is False


def test_memory_has_a_limit():
    evaluator = Evaluator(memory=16 << 20)  # less than it has when it starts
    with pytest.raises(ValueError, match="truth: expected"):
        evaluator.are_equal("2x", "x+x")
    evaluator.close()


def test_a_truth_over_the_limit_is_an_error(evaluator):
    with pytest.raises(ValueError, match="truth: expected an expression that can be evaluated within limits"):
        evaluator.are_equal("7^{3^{19}}", "5")
    assert evaluator.are_equal("2x", "x+x") is True


def test_a_process_that_was_ended_is_replaced(evaluator):
    assert evaluator.are_equal("2x", "x+x") is True
    os.kill(evaluator._process.pid, signal.SIGKILL)
    evaluator._process.wait()
    assert evaluator.are_equal("2x", "x+x") is True


def test_threads_take_turns(evaluator):
    found = []
    pairs = [("2x", "x+x", True), ("2x", "3x", False)] * 8
    threads = [threading.Thread(target=lambda p=p: found.append(evaluator.are_equal(*p[:2]) == p[2])) for p in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * len(pairs)


def test_a_process_that_does_not_start_is_no_reply_s_fault(monkeypatch):
    monkeypatch.setattr(evaluation, "_PROGRAM", "raise SystemExit(3)")
    with pytest.raises(evaluation.EvaluationError, match="did not start: its process ended with status 3"):
        Evaluator().are_equal("2x", "x+x")
