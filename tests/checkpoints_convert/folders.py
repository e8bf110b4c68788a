"""Synthetic released folders, small, in every layout."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from checkpoints_convert.synth import synth

SMALL = (
    "text_config.num_hidden_layers=2",
    "text_config.hidden_size=64",
    "text_config.intermediate_size=96",
    "audio_encoder_config.n_audio_layer=2",
    "audio_encoder_config.n_audio_state=32",
    "audio_encoder_config.n_audio_head=2",
    "audio_encoder_config.adapter_state=48",
)


def released(folder: Path, **options) -> Path:
    """A small released folder; options are synth's."""
    synth(folder, **({"overrides": SMALL} | options))
    return folder


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder, read by the safetensors library."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_same_bits(first: dict[str, np.ndarray], second: dict[str, np.ndarray]):
    assert sorted(first) == sorted(second)
    for name, array in first.items():
        assert array.dtype == second[name].dtype and array.shape == second[name].shape, name
        assert array.tobytes() == second[name].tobytes(), name


def edit_json(path: Path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
