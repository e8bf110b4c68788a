"""Parity with torch and transformers. The run ends with every figure measured, beside its bound."""

import importlib.util

import pytest

if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
    collect_ignore_glob = ["test_*.py"]  # they import torch; `make parity` installs it


@pytest.fixture
def figure(record_property):
    """figure(name, measured, bound) records a number for the summary and asserts that it keeps its bound."""

    def check(name: str, measured: float, bound: float):
        record_property("figure", f"{name}: {float(measured):.3g} (bound {bound:.3g})")
        assert float(measured) <= bound, f"{name}: expected at most {bound:.3g}, found {float(measured):.3g}"

    return check


def pytest_terminal_summary(terminalreporter):
    lines = []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            test = report.nodeid.rpartition("::")[2]
            lines += [f"{test}: {value}" for name, value in report.user_properties if name == "figure"]
    if lines:
        terminalreporter.section("parity figures")
        for line in lines:
            terminalreporter.line(line)
