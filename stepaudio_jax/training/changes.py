"""A run goes on with the config it was begun with; of changes, those that cannot spoil it, when they are named."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from stepaudio_jax.training.configs import Config

SAFE = (
    *("steps", "log_every", "eval_every", "save_dtype", "checkpoints.*", "guard.*", "generation.*"),
    *("optim.learning_rate", "optim.end_learning_rate", "optim.warmup_steps", "optim.weight_decay", "optim.clip_norm"),
    # Where and how the same is computed; to the bit it is another run, to rounding the same.
    *("topology", "mesh.*", "remat", "scan_layers", "vocab_chunks", "data.group_threads"),
)
"""What may change within a run. Everything else would make its first part and its second two different runs."""


class ConfigChangeError(ValueError):
    """The config is not the one of the run that lies there; the message lists what differs."""


def written(config: Config) -> str:
    """A config as it lies beside a run."""
    return config.to_json_best_effort(indent=2, sort_keys=True) + "\n"


def check_unchanged(config: Config, path: epath.Path, allowed: Sequence[str] = ()) -> list[str]:
    """Compares a config with the one of the run, if `path` is there. Returns the changes, as "key: old -> new".

    Args:
      allowed: keys that may differ.

    Raises:
      ConfigChangeError: a key differs that is not allowed, or one is allowed that is not safe.
    """
    if unsafe := [key for key in allowed if not _safe(key)]:
        raise ConfigChangeError(
            f"--allow-change={unsafe[0]}: would make it another run; what may change: {', '.join(SAFE)}"
        )
    if not path.exists():
        return []
    before, now = _flat(json.loads(path.read_text())), _flat(json.loads(written(config)))
    differ = [key for key in sorted(before | now) if before.get(key, "none") != now.get(key, "none")]
    changes = {key: f"{key}: {before.get(key, 'none')} -> {now.get(key, 'none')}" for key in differ}
    if refused := [key for key in differ if key not in allowed]:
        listed = "; ".join(changes[key] for key in refused)
        may = [key for key in refused if _safe(key)]
        fixed = [key for key in refused if not _safe(key)]
        advice = [f"{', '.join(fixed)} cannot change within a run: choose another --workdir"] if fixed else []
        advice += [f"to change {'it' if len(may) == 1 else 'those'}: --allow-change={','.join(may)}"] if may else []
        raise ConfigChangeError(f"{path}: a run with another config lies here ({listed}); {'; '.join(advice)}")
    return list(changes.values())


def _safe(key: str) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in SAFE)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix[:-1]: values}
    return {key: leaf for name, value in values.items() for key, leaf in _flat(value, f"{prefix}{name}.").items()}
