"""The small world as files, as people's own data come: data.jsonl in the format of ms-swift, and wav files."""

from __future__ import annotations

import io
import json

import numpy as np
import soundfile
from etils import epath

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.miniature.questions import KINDS, Question, make_question
from stepaudio_jax.miniature.text_questions import make_text_question
from stepaudio_jax.text import Audio, Turn

PLACEHOLDER = "<audio>"


def export_dataset(
    folder: epath.PathLike, *, records: int, seed: int = 0, preferences: bool = False, text_share: float = 0.1
) -> epath.Path:
    """Writes data.jsonl and wav/ into a folder; gives the path of the former.

    Args:
      preferences: a question about sound each, with the reply to another scene of its kind as the rejected one.
      text_share: of the records otherwise, how many are text alone.

    Raises:
      FileExistsError: the folder holds a data.jsonl already.
    """
    folder = epath.Path(folder)
    target = folder / "data.jsonl"
    if target.exists():
        raise FileExistsError(f"{target}: exists already; choose another folder, or remove it")
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    temporary = folder / "data.jsonl.unfinished"
    with temporary.open("w") as file:
        for number in range(records):
            rng = np.random.default_rng((seed, number))
            kind = KINDS[int(rng.integers(len(KINDS)))]
            text = not preferences and rng.random() < text_share
            question = make_text_question(rng) if text else make_question(rng, kind)
            record = _record(question, folder, f"wav/{number:06d}")
            if preferences:
                record["rejected_response"] = _reply(_another(rng, kind, question).conversation.turns[-1])
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    temporary.replace(target)
    return target


def _another(rng: np.random.Generator, kind: str, question: Question) -> Question:
    """A question of the same kind with another reply."""
    reply = _reply(question.conversation.turns[-1])
    while _reply((other := make_question(rng, kind)).conversation.turns[-1]) == reply:
        pass
    return other


def _record(question: Question, folder: epath.Path, stem: str) -> dict:
    messages, sounds = [], []
    for turn in question.conversation.turns:
        content = _reply(turn) if turn.role == "assistant" else ""
        for part in turn.parts if turn.role != "assistant" else ():
            if isinstance(part, Audio):
                name = f"{stem}_{len(sounds)}.wav"
                buffer = io.BytesIO()
                soundfile.write(buffer, part.samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
                (folder / name).write_bytes(buffer.getvalue())
                sounds.append(name)
            content += PLACEHOLDER if isinstance(part, Audio) else part.text
        messages.append({"role": "user" if turn.role == "human" else turn.role, "content": content})
    return {"messages": messages, "audios": sounds, "answer": question.answer}


def _reply(turn: Turn) -> str:
    """As ms-swift writes it: the reasoning in its tags, then the answer."""
    return f"<think>\n{turn.think or ''}\n</think>\n{turn.text}"
