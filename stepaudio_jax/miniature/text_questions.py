"""Questions without sound: sums and orderings, whose reasoning is as short as that about sounds."""

from __future__ import annotations

import numpy as np

from stepaudio_jax.miniature.drawing import known, say, shuffle
from stepaudio_jax.miniature.questions import Question
from stepaudio_jax.text import Conversation, assistant, human


def make_text_question(rng: np.random.Generator, kind: str | None = None) -> Question:
    """A question without sound: "sum" or "logic"."""
    kind = known(kind, TEXT_KINDS) if kind else TEXT_KINDS[int(rng.integers(len(TEXT_KINDS)))]
    asked, think, answer = _TEXT_MAKERS[kind](rng)
    return Question(kind, Conversation((human(asked), assistant(answer, think=think))), answer)


def _sum(rng: np.random.Generator) -> tuple[str, str, str]:
    a, b = int(rng.integers(10)), int(rng.integers(10))
    if rng.random() < 0.5:
        asked, sign, answer = say(rng, "What is {} plus {}?", "What is {} + {}?", "Add {} and {}."), "+", a + b
    else:
        a, b = max(a, b), min(a, b)
        asked, sign, answer = say(rng, "What is {} minus {}?", "What is {} - {}?"), "-", a - b
    return asked.format(a, b), f"{a} {sign} {b} = {answer}.", str(answer)


def _logic(rng: np.random.Generator) -> tuple[str, str, str]:
    names = [str(name) for name in rng.permutation(["Anna", "Ben", "Carl", "Dora", "Emil"])[:3]]
    facts = shuffle(rng, [f"{names[0]} is taller than {names[1]}.", f"{names[1]} is taller than {names[2]}."])
    answer, word = (names[0], "tallest") if rng.random() < 0.5 else (names[2], "shortest")
    return f"{' '.join(facts)} Who is the {word}?", f"In order: {', '.join(names)}. The {word}: {answer}.", answer


_TEXT_MAKERS = {"sum": _sum, "logic": _logic}
TEXT_KINDS = tuple(_TEXT_MAKERS)
