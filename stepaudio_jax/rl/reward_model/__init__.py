"""The generative reward model (R1.5 §3.3): what it is asked, how its verdict is read, and what that is worth."""

from stepaudio_jax.rl.reward_model.agreement import Agreement, agreement
from stepaudio_jax.rl.reward_model.compare import Judged, RewardModel
from stepaudio_jax.rl.reward_model.templates import Comparison
from stepaudio_jax.rl.reward_model.verdicts import LEVELS, VALUES, read_level, shown

__all__ = ["LEVELS", "VALUES", "Agreement", "Comparison", "Judged", "RewardModel", "agreement", "read_level", "shown"]
