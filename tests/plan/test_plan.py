"""Plans for this machine, the search, the comparison, and mistakes in one line."""

import dataclasses
import importlib.util
import io
import json
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from stepaudio_jax import cli
from stepaudio_jax.parallel.chips import GIB, parse_topology
from stepaudio_jax.plan import compare, fit, plan_config, read_prices
from stepaudio_jax.plan.command import comparison, report, search
from stepaudio_jax.plan.plan import Plan, PlanError, _needed
from stepaudio_jax.plan.search import candidates, with_settings
from stepaudio_jax.training import read_config

CONFIGS = ("sft_33b", "sft_8b", "mid_training_33b", "mid_training_8b", "serve_33b", "serve_8b", "rlvr_33b",
           "rlhf_33b")  # fmt: skip


def test_the_tiny_config_on_this_cpu(capsys):
    assert cli.main(["plan", "--config=configs/tiny.py", "--json", "--config.data.batch_size=8"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert plan["topology"] == "cpu" and plan["fits"] is None and plan["tokens"] == 8 * 160
    parameters = plan["groups"]["parameters"]
    assert plan["groups"]["optimizer state"] == pytest.approx(2 * parameters, rel=0.01)
    assert plan["peak"] > 3 * parameters and 1.0 <= plan["recompute"] < 1.1


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_name_a_stage_and_the_slice_they_are_for(name):
    config = read_config(f"configs/{name}.py")
    topology = parse_topology(config.topology)
    assert topology.chip is not None and config.stage in ("supervised", "serve", "rl")
    assert config.model == name.rsplit("_", 1)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5q:4x4x4"], "unknown chip 'v5q'; did you mean v5"),
        (["--topology=v5p:4x4x5"], "the nearest is v5p:4x4x4"),
        (["--config.mesh.fsdp=3"], "fsdp 3 makes 3, found 1 devices; the nearest that fits is data 1 x fsdp 1"),
        (["--config.optim.learning_rat=1"], "no such key in configs/tiny.py; did you mean optim.learning_rate?"),
        (["--config.microbatches=5"], "microbatches: 5 does not divide data.batch_size 32; the nearest that does is 4"),
        (["--config.stage=supervise"], "expected one of supervised, serve, rl, found 'supervise'; supervised?"),
        (["--config.remat=some"], 'remat: "some" recomputes scanned layers'),
        (["--program=train"], "program: expected one of train step, found 'train'"),
        (["--slices=2"], "this machine is one"),
        (["--fit"], "a CPU has no limit"),
        (["--price=v5p=cheap"], "expected v5p=DOLLARS, found 'cheap'"),
        (["--price=h100=2"], "expected one of v4, v5e, v5p, v6e, tpu7x, found 'h100'"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    code = cli.main(["plan", "--config=configs/tiny.py", *arguments])
    said = capsys.readouterr().err
    assert code == 2 and len(said.strip().splitlines()) == 1
    assert message in said


def test_without_the_tpu_compiler(monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find_spec(name))
    assert cli.main(["plan", "--config=configs/tiny.py", "--topology=v6e-8"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("stepaudio plan: v6e:2x4: planning for TPUs needs their compiler, libtpu")
    assert 'install it with pip install "stepaudio-jax[tpu]", or plan for --topology=cpu' in said and "\n" not in said


def test_the_compilers_refusals_are_read():
    assert _needed("RESOURCE_EXHAUSTED: ... HLO temporaries (600.00G) exceeds available HBM (15.25G).") == 600 * GIB
    assert (
        _needed("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.") == 20.5 * GIB
    )
    assert _needed("INTERNAL: something else") is None


def example(**changes) -> Plan:
    base = Plan(
        program="train step", about="8 rows", topology="v6e:2x4", chips=8, mesh={"fsdp": 8}, groups={"parameters": GIB},
        activations=GIB, temporaries=GIB, peak=3 * GIB, capacity=31.25 * GIB, peak_flops=918e12, fits=True,
        model_flops=1e15, compiled_flops=1.2e15, recompute=1.2, collectives={"all-gather over fsdp": 1e9}, in_loops=[],
        tokens=80_000, floors={"arithmetic": 2.0, "memory": 1.0}, compile_seconds=1.0,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def shown(table) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_report_says_what_binds_and_that_nothing_was_measured():
    text = shown(report(example()))
    assert f"{1e15 / 2 / (8 * 918e12):.1%}" in text
    assert "arithmetic" in text and "2,000 ms <- binds" in text and "5,000" in text and "no measurement" in text
    assert "does NOT fit: 3.75 GiB too much" in shown(report(example(peak=35 * GIB, fits=False, floors={})))
    assert "less than 5%" in shown(report(example(peak=30.5 * GIB, fits=False)))


def test_prices_and_the_comparison(monkeypatch):
    rates = {"v6e:2x4": 2.0, "v5p:2x2x1": 1.0, "v5e:4x4": None}

    def planned(config, topology):
        seconds = rates[topology.name]
        return [example(topology=topology.name, chips=topology.chips, fits=seconds is not None,
                        floors={"arithmetic": seconds} if seconds else {})]  # fmt: skip

    monkeypatch.setattr("stepaudio_jax.plan.offers.plan_config", planned)
    topologies = [parse_topology(name) for name in rates]
    offers = compare(None, topologies, 1e9, read_prices(["v6e=2.0"]))
    assert [offer.plan.topology for offer in offers] == ["v5p:2x2x1", "v6e:2x4", "v5e:4x4"]
    cheapest, dearer, none = offers
    assert cheapest.chip_hours == pytest.approx(1e9 / (80_000 / 1.0 / 4) / 3600)
    assert cheapest.dollars == pytest.approx(cheapest.chip_hours * 4.20)
    assert dearer.dollars == pytest.approx(2 * dearer.chip_hours) and dearer.hours == pytest.approx(
        dearer.chip_hours / 8
    )
    assert none.dollars is None
    assert "lower bound" in shown(comparison(offers, 1e9))


def test_the_search_takes_the_fastest_that_fits(monkeypatch):
    """Here: what saves everything fits only in several microbatches, and every microbatch costs a little."""
    config = read_config("configs/sft_33b.py")

    def planned(config, topology):
        if config.data.batch_size // config.microbatches % config.mesh.fsdp:
            raise ValueError("does not divide")
        saved = {"products": 8, "gate": 4, "attention": 2, "full": 1}[config.remat]
        peak = saved * config.data.batch_size / config.microbatches / config.mesh.tensor
        seconds = {"products": 1.0, "gate": 1.1, "attention": 1.2, "full": 1.3}[
            config.remat
        ] + 0.04 * config.microbatches
        return [
            example(
                peak=peak, fits=peak <= 300, floors={"arithmetic": seconds + config.mesh.tensor + config.mesh.context}
            )
        ]

    monkeypatch.setattr("stepaudio_jax.plan.search.plan_config", planned)
    found = fit(config, parse_topology("v5p:4x4x4"))
    assert found.best is not None and found.best[0].fits
    assert found.settings["remat"] == "gate" and found.settings["microbatches"] == 2
    assert "mesh.fsdp=64" in shown(search(found))

    monkeypatch.setattr("stepaudio_jax.plan.search.plan_config", lambda c, t: [example(peak=9e12, fits=False)])
    nothing = fit(config, parse_topology("v5p:4x4x4"), tries=4)
    assert nothing.best is None and 1 <= len(nothing.tried) <= 4


def test_smaller_batches_come_after_all_others_and_shorter_rows_last():
    config = read_config("configs/sft_33b.py")
    every = list(candidates(config, parse_topology("v5p:4x4x4")))
    shrunk = [settings.get("data.batch_size", 128) for settings in every if "data.buckets" not in settings]
    assert shrunk == sorted(shrunk, reverse=True) and set(shrunk) == {128, 64, 32, 16}
    assert every[-1]["data.buckets"] == ((5_120, 5_120 * 1_280),)
    changed = with_settings(config, every[0])
    assert changed.mesh.fsdp == every[0]["mesh.fsdp"] and config.microbatches == 2


PROGRAM = """
import sys
import jax, numpy as np
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.parallel.chips import parse_topology
from stepaudio_jax.plan.plan import plan_program
from stepaudio_jax.training import read_config
from stepaudio_jax.training.stage import programs
jax.config.update("jax_enable_compilation_cache", True)
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
mesh = make_mesh({}, jax.devices()[:1])
program = programs(read_config("configs/tiny.py", ["--config.data.batch_size=64"]), mesh)["train step"]
if sys.argv[1] == "plan":
    print(plan_program("", program, mesh, parse_topology("cpu")).peak)
    sys.exit()
def memory(which):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(which))
compiled = program.lower().compile()
before = memory("VmRSS")
arguments = jax.tree.map(lambda s: jax.device_put(np.zeros(s.shape, s.dtype)), program.abstract_args)
jax.block_until_ready(compiled(*arguments))
print(memory("VmHWM") - before)  # getrusage would tell the peak of the process that started this one
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc, as on Linux")
def test_the_planned_peak_is_what_a_process_takes(tmp_path):
    """Planned and compiled in one process; run in a fresh one, from the compile cache."""

    def number(what: str) -> float:
        command = [sys.executable, "-c", PROGRAM, what, str(tmp_path)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])

    planned, taken = number("plan"), number("run")
    assert planned >= 1.5e9
    assert taken == pytest.approx(planned, rel=0.15)


INTERRUPTED = """
import hashlib, sys
from stepaudio_jax import cli
from stepaudio_jax.plan import command
def plan_config(*_, **__):
    print("compiling", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes that heed no signal, as a compiler's
command.plan_config = plan_config
sys.exit(cli.main(["plan", "--config=configs/tiny.py"]))
"""


def test_ctrl_c_while_it_compiles():
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout and process.stdout.readline() == "compiling\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.communicate(timeout=600) == ("", "stepaudio plan: interrupted\n")
        finally:
            process.kill()
    assert process.returncode == 130


def test_a_stage_that_does_not_exist():
    config = read_config("configs/tiny.py", ["--config.stage=judge"])
    with pytest.raises(PlanError, match="expected one of supervised, serve, rl, found 'judge'"):
        plan_config(config, parse_topology("cpu"))
