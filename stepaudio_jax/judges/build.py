"""The judge that a command or a config names."""

from __future__ import annotations

import os
from collections.abc import Mapping

from etils import epath

from stepaudio_jax.inference import EngineOptions
from stepaudio_jax.judges.endpoint import EndpointJudge, EndpointOptions
from stepaudio_jax.judges.engine import EngineJudge
from stepaudio_jax.judges.protocol import Judge
from stepaudio_jax.judges.recorded import Recorded

KEY = "JUDGE_API_KEY"
"""Variable of the environment that holds an address's key: keys are no part of configs, which are saved with runs."""


def make_judge(
    *,
    checkpoint: epath.PathLike | None = None,
    url: str | None = None,
    replay: epath.PathLike | None = None,
    model: str = "default",
    record: epath.PathLike | None = None,
    options: EndpointOptions | None = None,
    engine: EngineOptions | None = None,
    mesh: Mapping[str, int] | None = None,
) -> Judge:
    """Exactly one of a checkpoint of ours, an OpenAI-compatible address, and a file of what a judge said before.

    Args:
      model: its name at the address.
      record: a file in which replies are kept; what is in there is not asked again.
      options: of an address. engine, mesh: of a checkpoint (inference.session.load_engine).

    Raises:
      ValueError: none of the three, or several.
    """
    named = {"checkpoint": checkpoint, "url": url, "replay": replay}
    given = [name for name, value in named.items() if value]
    if len(given) != 1:
        raise ValueError(f"judge: expected one of {', '.join(named)}, found {', '.join(given) or 'none'}")
    if replay:
        return Recorded(replay, None)
    if url:
        judge: Judge = EndpointJudge(url, model, key=os.environ.get(KEY, "none"), options=options)
    else:
        from stepaudio_jax.inference.session import load_engine

        judge = EngineJudge(load_engine(str(checkpoint), options=engine, mesh=mesh), str(checkpoint))
    return Recorded(record, judge) if record else judge
