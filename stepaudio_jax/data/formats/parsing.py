"""Which format a record has, and from there to a Sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stepaudio_jax.data.formats import chat, sharegpt, swift, verl
from stepaudio_jax.data.formats.fields import DialogueError
from stepaudio_jax.data.reading import Record
from stepaudio_jax.data.samples import RecordError, Sample, check_size, printable
from stepaudio_jax.data.sounds import Clips, RecordSounds
from stepaudio_jax.text import Conversation

Dialogues = tuple[Conversation, Conversation | None]

FORMATS: dict[str, Callable[[Mapping[str, Any], Clips], Dialogues]] = {
    "swift": swift.read,
    "sharegpt": sharegpt.read,
    "chat": chat.read,
    "verl": verl.read,
}
"""By name: a record to its dialogue, and where there is one the same ending in a worse reply."""

def detect(record: Mapping[str, Any]) -> str:
    """The format a record's columns speak of.

    Raises:
      DialogueError: none of them.
    """
    has = {name for name, value in record.items() if value is not None}
    if "prompt" in has and has & {"reward_model", "data_source"} and not has & {"chosen", "completion"}:
        return "verl"
    if "conversations" in has:
        return "sharegpt"
    if has & {"chosen", "completion"}:
        return "chat"
    if "messages" in has:
        pair = has & {"rejected_response", "rejected_messages"}
        return "chat" if chat.has_parts(record["messages"]) and not pair else "swift"
    if "query" in has:
        return "swift"
    raise DialogueError(
        "no known format; expected the column messages (swift, chat), query (swift), conversations (sharegpt), chosen "
        "or completion (chat), or prompt with reward_model (verl), found "
        f"{', '.join(sorted(map(str, has))) or 'nothing'}"
    )


def parse(
    record: Record, sounds: Clips, where: str, *, format: str | None = None, prompts: bool = False
) -> Sample:
    """A record to a Sample, its sounds loaded; a Sample stays what it is.

    Args:
      where: the record's place, "file:line".
      format: one of FORMATS; by default detected from the record's columns.
      prompts: take records without a reply too: prompts for reinforcement learning.

    Raises:
      RecordError: it cannot be used; one line, beginning with `where`.
    """
    if isinstance(record, Sample):
        sample = record
    else:
        try:
            conversation, rejected = FORMATS[format or detect(record)](record, RecordSounds(sounds))
        except ValueError as error:  # DialogueError, AudioError, and what the text classes refuse
            raise RecordError(f"{where}: {printable(str(error))}") from None
        except RecursionError:
            raise RecordError(f"{where}: lists and objects nested too deeply to be read") from None
        sample = Sample(conversation, rejected, where)
    check_size(sample, where)
    if not prompts and not any(turn.role == "assistant" for turn in sample.conversation.turns):
        raise RecordError(f"{where}: no assistant turn, nothing to train on; expected a reply (or prompts for RL)")
    return sample
