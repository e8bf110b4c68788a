"""How good a reply in a dialogue is, by rule: what it keeps of what was agreed on, and how it would be to hear it.

Two scores from 0 to 1. By rubric: the share of its points that a reply meets, and nothing else. Without one, what
people prefer: a right answer, in a whole sentence, that says what it speaks of, with a friendly word; and not for ever.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.miniature import scenes

ANSWERS: Mapping[str, tuple[str, ...]] = {
    "timbre": scenes.TIMBRES,
    "direction": scenes.DIRECTIONS,
    "order": scenes.KINDS,
    "count": tuple("0123456789"),
    "loudness": ("the first", "the second"),
    "pitch": ("the first", "the second"),
    "tempo": ("faster", "slower"),
    "arithmetic": tuple("0123456789"),
}
"""Of each kind of question in dialogues, every answer there can be."""

SUBJECTS = {"timbre": "tone", "direction": "chirp", "pitch": "tone", "tempo": "click train"}
"""What an answer speaks of; else a sound."""

WARM = ("Good question", "With pleasure", "Of course")

LONGEST = 24
"""Words of a reply that nobody minds."""

OFTEN = 3
"""Times that a word may come in a reply."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a reply is judged by; "" and False where there is nothing to keep.

    Attributes:
      kind, answer: of the last question.
      name: to call the person by. ending: words to end with. opening: words to begin with.
      mood: what the person's voice asks to be told.
      corrected: the question was taken back for another. interrupted: the last reply was broken in on.
    """

    kind: str = "order"
    answer: str = ""
    name: str = ""
    ending: str = ""
    opening: str = ""
    mood: str = ""
    corrected: bool = False
    interrupted: bool = False


def facts_of(extra: Mapping[str, Any]) -> Facts:
    """From a record's column `facts`, a JSON object.

    Raises:
      ValueError: there is none.
    """
    if not isinstance(found := extra.get("facts"), Mapping):
        raise ValueError("facts: expected a column with what the reply is judged by, found none")
    return Facts(**found)


def named(reply: str, facts: Facts) -> str | None:
    """The answer that a reply gives, of those that its question can have; None for none, or for several."""
    text = reply.lower()
    found = {answer for answer in ANSWERS[facts.kind] if re.search(rf"\b{re.escape(answer)}\b", text)}
    return found.pop() if len(found) == 1 else None


def is_right(reply: str, facts: Facts) -> bool:
    return named(reply, facts) == facts.answer


def points(reply: str, facts: Facts) -> dict[str, bool]:
    """Each point of the rubric in words, and whether a reply meets it."""
    text, words = _normal(reply), _normal(reply).split()
    found = {}
    if facts.name:
        found[f"Calls the person {facts.name}."] = facts.name.lower() in words
    if facts.ending:
        found[f"Ends with: {facts.ending}."] = text.endswith(_normal(facts.ending))
    if facts.opening:
        found[f"Begins with: {facts.opening}."] = text.startswith(_normal(facts.opening))
    if facts.mood:
        found[f"Says to a person who sounds so: {facts.mood}."] = _normal(facts.mood) in text
    if facts.interrupted:
        found["Says that it stops."] = "i stop" in text
    if facts.corrected:
        found["Answers the question that was asked in the end."] = named(reply, facts) is not None
    return found


def rubric(facts: Facts) -> str:
    return "\n".join(points("", facts))


def by_rubric(reply: str, facts: Facts) -> float:
    met = points(reply, facts).values()
    return sum(met) / len(met) if met and not _babbles(reply) else 0.0


def qualities(reply: str, facts: Facts) -> dict[str, bool]:
    """What people prefer in a reply where no rubric says what to look at."""
    subject = SUBJECTS.get(facts.kind, "sound")
    sentences = [part.strip() for part in re.split(r"(?<=[.!?])\s+", reply.strip())]
    wholes = [s for s in sentences if len(s.split()) >= 4 and s[:1].isupper() and s[-1:] in ".!?"]
    return {
        "is right": is_right(reply, facts),
        "answers in a whole sentence": any(named(sentence, facts) for sentence in wholes),
        "says what it speaks of": subject in _normal(reply),
        "is warm": any(_normal(phrase) in _normal(reply) for phrase in WARM),
    }


WEIGHTS = {
    "is right": 0.4,
    "answers in a whole sentence": 0.2,
    "says what it speaks of": 0.2,
    "is warm": 0.2,
}


def by_preference(reply: str, facts: Facts) -> float:
    if _babbles(reply):
        return 0.0
    return sum(WEIGHTS[name] for name, good in qualities(reply, facts).items() if good)


def _babbles(reply: str) -> bool:
    words = _normal(reply).split()
    return len(words) > LONGEST or max(Counter(words).values(), default=0) > OFTEN


def _normal(text: str) -> str:
    """Lower case, without marks, single spaces."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())
