"""Comparisons that people have decided, from the files they come in.

    messages or prompt, chosen, rejected     preferences as TRL and UltraFeedback have them, and every other format of
                                             `data.formats` that holds a worse reply: the better one is the reply
    context, response1, response2,           HelpSteer3: −3 (the first is far better) to 3
      overall_preference
    messages, reply, reference, label        a number above 0 where the reply is better, or one of the five levels

A column `rubric` is judged by where there is one; a column `critique` is what a judge that is taught should write
before its verdict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from stepaudio_jax.data.formats import parse
from stepaudio_jax.data.reading import Record, read
from stepaudio_jax.data.samples import RecordError, Sample
from stepaudio_jax.data.sounds import Sounds
from stepaudio_jax.rl.reward_model.templates import Comparison, rubric_of
from stepaudio_jax.rl.reward_model.verdicts import LEVELS, VALUES, Level
from stepaudio_jax.text import Conversation


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A comparison that somebody has decided.

    Attributes:
      label: how much better the reply is than the reference, in the file's own measure: above 0 better, 0 neither.
      where: its place.
      level: the label as a judge would say it.
      critique: why; "" for nothing.
    """

    comparison: Comparison
    label: float
    where: str
    level: Level = "equal"
    critique: str = ""


def read_labelled(paths: Iterable[epath.PathLike], sounds: Sounds) -> tuple[list[Labelled], list[RecordError]]:
    """(What can be used, why the others cannot be), in the files' order."""
    found, refused = [], []
    for where, record in read(paths):
        try:
            if isinstance(record, RecordError):
                raise record
            found.append(_labelled(record, sounds, where))
        except RecordError as error:
            refused.append(error)
    return found, refused


def _labelled(record: Record, sounds: Sounds, where: str) -> Labelled:
    if not isinstance(record, Sample):
        if "overall_preference" in record:
            return _helpsteer(record, sounds, where)
        if "reference" in record and "reply" in record:
            return _of_reference(record, sounds, where)
    sample = parse(record, sounds, where)
    if sample.rejected is None:
        raise RecordError(f"{where}: expected a worse reply beside the better one, found none")
    history, better = _last(sample.conversation, where)
    worse = _last(sample.rejected, where)[1]
    comparison = Comparison(history, better, worse, *_rubric(sample.conversation.extra, where))
    critique = str(sample.conversation.extra.get("critique") or "")
    return Labelled(comparison, 1.0, where, "better", critique)


def _of_reference(record: Mapping[str, Any], sounds: Sounds, where: str) -> Labelled:
    label, replies = record.get("label"), [record["reply"], record["reference"]]
    if label in LEVELS:
        label = VALUES[LEVELS.index(label)]
    if isinstance(label, bool) or not isinstance(label, int | float):
        raise RecordError(f"{where}: label: expected a number or one of {', '.join(LEVELS)}, found {label!r}")
    return _pair(record.get("messages"), replies, float(label), record, sounds, where, much=1.0)


def _helpsteer(record: Mapping[str, Any], sounds: Sounds, where: str) -> Labelled:
    label, replies = record["overall_preference"], [record.get("response1"), record.get("response2")]
    if isinstance(label, bool) or not isinstance(label, int | float) or not -3 <= label <= 3:
        raise RecordError(f"{where}: overall_preference: expected −3 to 3, found {label!r}")
    context = record.get("context")
    asked = [{"role": "user", "content": context}] if isinstance(context, str) else context
    return _pair(asked, replies, -float(label), record, sounds, where, much=3.0)


def _pair(
    messages: Any, replies: list[Any], label: float, record: Mapping, sounds: Sounds, where: str, *, much: float
) -> Labelled:
    """`much`: the label from which a reply is much better."""
    for reply in replies:
        if not isinstance(reply, str):
            raise RecordError(f"{where}: expected two replies as text, found {type(reply).__name__}")
    given = {"messages": messages} | {name: record[name] for name in ("audios",) if name in record}
    history = parse(given, sounds, where, prompts=True).conversation
    reply, reference = replies
    level = LEVELS[2 + (label > 0) - (label < 0) + (label >= much) - (label <= -much)]
    critique = str(record.get("critique") or "")
    comparison = Comparison(history, reply, reference, *_rubric(record, where))
    return Labelled(comparison, label, where, level, critique)


def _rubric(record: Mapping[str, Any], where: str) -> tuple[str, tuple[float, ...]]:
    try:
        return rubric_of(record.get("rubric"))
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from error


def _last(conversation: Conversation, where: str) -> tuple[Conversation, str]:
    """The dialogue without its last turn, and what that says."""
    *turns, reply = conversation.turns
    if reply.role != "assistant" or not turns:
        raise RecordError(f"{where}: expected a dialogue that ends in a reply")
    return dataclasses.replace(conversation, turns=tuple(turns)), reply.text
