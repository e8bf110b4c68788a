"""verl's rows: a prompt, and what its reward is computed from.

    {"data_source": "miniature", "prompt": [{"role": "user", "content": "<audio>How many tones?"}],
     "audios": ["clips/17.wav"], "ability": "counting", "reward_model": {"style": "rule", "ground_truth": "2"},
     "extra_info": {"split": "train", "index": 17}}

`data_source`, `ability`, `reward_model` and `extra_info` are kept in `extra`, like all other columns. There is no
reply in such a row: it is a prompt for reinforcement learning. (verl.readthedocs.io, preparation/prepare_data.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.formats import messages
from stepaudio_jax.data.formats.messages import Names
from stepaudio_jax.data.sounds import Clips
from stepaudio_jax.text import Conversation


def read(record: Mapping[str, Any], sounds: Clips) -> tuple[Conversation, Conversation | None]:
    """(dialogue, None). Raises DialogueError or AudioError."""
    return messages.dialogue(record, sounds, (), Names("prompt")), None
