"""The log: what is taken back, what is left out, rates against numbers put in; without TensorBoard as with it."""

import builtins
import json
import time

import jax
import pytest

from stepaudio_jax.parallel.chips import CHIPS
from stepaudio_jax.training import metrics
from stepaudio_jax.training.metrics import Meter, MetricsLog


def test_what_was_said_of_steps_that_come_again_is_taken_back(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(1, 8):
        log.log({"step": step, "loss": 1.0 / step})
    log.log({"step": 7, "event": "skipped"})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # a kill in the middle of a line
    log = MetricsLog(tmp_path, after=5)
    log.log({"step": 6, "loss": 9.0})
    log.close()
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert metrics.read(tmp_path)[-1]["loss"] == 9.0


@pytest.mark.parametrize("evaluated", [True, False])
def test_an_evaluation_that_comes_again_is_taken_back(tmp_path, evaluated):
    log = MetricsLog(tmp_path)
    lines = [{"step": 4, "loss": 2.0}, {"step": 4, "score": 1.0}, {"step": 5, "loss": 1.0}, {"step": 5, "score": 0.5}]
    for line in lines:
        log.log(line)
    log.close()
    MetricsLog(tmp_path, after=5, evaluated=evaluated).close()
    assert metrics.read(tmp_path) == lines[: 4 if evaluated else 3]


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    """JSON has no NaN; a source that is not in a batch has no loss."""
    log = MetricsLog(tmp_path)
    log.log({"step": 1, "loss": 2.0, "loss/cot": float("nan"), "x": float("inf")})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    log = MetricsLog(tmp_path)
    log.log({"step": 3, "loss": 2.5, "loss/cot": 1.5})
    log.log({"step": 3, "event": "words"})
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, found, at = file.read_bytes(), {}, 0
    while at < len(content):  # TFRecord: length, its checksum, the data, its checksum
        size = int.from_bytes(content[at : at + 8], "little")
        event = Event.FromString(content[at + 12 : at + 12 + size])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        at += size + 16
    assert found == {("loss", 3): 2.5, ("loss/cot", 3): 1.5}


def test_without_tensorboard_there_is_still_a_log(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    log = MetricsLog(tmp_path)
    log.log({"step": 1, "loss": 2.0})
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when it is told to."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_rates_are_since_the_last_and_without_compiling(clock):
    meter = Meter(1e9, "cpu", devices=4)
    for _ in range(2):
        meter.step(tokens=600, places=1000, waited=0.5)
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 2.0)
    clock[0] += 6.0  # two of which went into compiling
    first = meter.rates()
    assert first == {
        "tokens_per_second": pytest.approx(1200 / 4),
        "tokens_per_second_per_chip": pytest.approx(1200 / 4 / 4),
        "padding": pytest.approx(0.4),
        "data_wait": pytest.approx(1.0 / 4),
        "seconds": 6.0,
        "compile_seconds": 2.0,
    }
    meter.step(tokens=500, places=1000, waited=0.0)
    clock[0] += 10.0
    second = meter.rates()
    assert second["tokens_per_second"] == pytest.approx(50) and second["seconds"] == 16.0
    assert "compile_seconds" not in second and "mfu" not in second


def test_utilisation_is_by_the_datasheet(clock, monkeypatch):
    """PaLM (arXiv:2204.02311), appendix B: FLOPs the model needs, over what the chips could do in the time."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    meter = Meter(1e15, "tpu7x-64", devices=128)  # two devices a chip
    for _ in range(3):
        meter.step(tokens=1, places=1, waited=0.0)
    clock[0] += 5.0
    rates = meter.rates()
    assert rates["mfu"] == pytest.approx(3e15 / 5 / (64 * CHIPS["tpu7x"].flops))
    assert rates["tokens_per_second_per_chip"] == pytest.approx(3 / 5 / 64)
