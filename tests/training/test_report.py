"""The page about a run: every curve that there are numbers for, everything that happened, nothing from outside."""

import json
import re
import xml.etree.ElementTree

import pytest
from rich.console import Console

from stepaudio_jax.training import report
from stepaudio_jax.training.metrics import MetricsLog


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"steps": 20, "name": "<script>alert(1)</script>"}))
    log = MetricsLog(tmp_path)
    for step in range(1, 11):
        log.log({"step": step, "loss": 3 / step, "loss/cot": 2 / step, "think_tokens": 90.0, "grad_norm": 1.0})
    log.log({"step": 5, "accuracy": 0.5})
    log.log({"step": 7, "event": "skipped: step 7: <b>the loss is 9</b>"})
    log.close()
    return tmp_path


def test_the_page_has_what_there_is(workdir):
    report.write(workdir, [4, 8], Console())
    page = (workdir / "report.html").read_text()
    for part in ("10 of 20 steps", "000004", "000008", "after step 7", "evaluation: accuracy"):
        assert part in page
    figures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(figures) == 4  # losses, gradient norm, think tokens, the evaluation
    for figure in figures:
        xml.etree.ElementTree.fromstring(figure)
    assert "<script>" not in page and "<b>" not in page
    assert not re.search(r'(src|href)="(?!#)', re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL))
    assert not list(workdir.glob("*.unfinished"))


def test_a_run_that_has_not_logged_has_a_page(workdir):
    (workdir / "metrics.jsonl").unlink()
    assert "no step" in report.render(workdir, [])


@pytest.mark.parametrize(
    "error, told", [(ImportError("matplotlib"), r"pip install 'stepaudio-jax\[train\]'"), (OSError("full"), "full")]
)
def test_what_keeps_it_from_being_written_is_told(workdir, monkeypatch, capsys, error, told):
    def fails(*_):
        raise error

    monkeypatch.setattr(report, "render", fails)
    report.write(workdir, [], Console(soft_wrap=True))
    assert re.search(told, capsys.readouterr().out)
    assert not (workdir / "report.html").exists()
