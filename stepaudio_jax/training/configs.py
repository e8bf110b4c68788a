"""Reads a config file with overrides in config_flags syntax: --config.optim.learning_rate=1e-3."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

import ml_collections
from absl import flags
from etils import epath
from ml_collections import config_flags

Config = Any
"""An ml_collections.ConfigDict: its values have types that only the config file knows."""


def read_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """The ConfigDict of `get_config()` in a Python file, with `--config.key=value` overrides.

    Raises:
      FileNotFoundError: no such file.
      ValueError: an unknown key (naming the nearest), a value of the wrong type, or any other argument.
    """
    if not epath.Path(path).exists():
        raise FileNotFoundError(f"{path}: no such config file; see the configs folder")
    try:
        config, rest = _parse(["train", f"--config={path}", *overrides])
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(_explain(path, overrides, error)) from None
    if rest:
        raise ValueError(f"unknown arguments: {' '.join(rest)}")
    config.lock()
    return config


def copy_of(config: Config) -> Config:
    """A config of its own, which may be changed."""
    made = ml_collections.ConfigDict(config.copy_and_resolve_references())
    made.unlock()
    return made


def _parse(argv: list[str]) -> tuple[Config, list[str]]:
    """The config, and the arguments that are not about it. config_flags looks for overrides in sys.argv alone."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    with mock.patch.object(sys, "argv", argv):
        rest = values(argv)[1:]
        return values.config, rest


def _explain(path: str, overrides: Sequence[str], error: Exception) -> str:
    known = dict(_flatten(_parse(["train", f"--config={path}"])[0]))
    for override in overrides:
        key = override.removeprefix("--config.").split("=")[0]
        if override.startswith("--config.") and key not in known:
            near = difflib.get_close_matches(key, known, 1)
            return f"--config.{key}: no such key in {path}" + (f"; did you mean {near[0]}?" if near else "")
    return str(error)


def _flatten(config: Config, prefix: str = ""):
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
