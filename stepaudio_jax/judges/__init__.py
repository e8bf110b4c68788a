"""Who judges: a checkpoint of ours, an address, or a file of what was said before. They know no templates."""

from stepaudio_jax.judges.build import make_judge
from stepaudio_jax.judges.endpoint import EndpointJudge, EndpointOptions
from stepaudio_jax.judges.engine import EngineJudge
from stepaudio_jax.judges.protocol import Counters, Judge, JudgeError, Question, Reply
from stepaudio_jax.judges.recorded import Recorded

__all__ = [
    "Counters",
    "EndpointJudge",
    "EndpointOptions",
    "EngineJudge",
    "Judge",
    "JudgeError",
    "Question",
    "Recorded",
    "Reply",
    "make_judge",
]
