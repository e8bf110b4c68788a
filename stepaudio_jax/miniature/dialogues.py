"""Dialogues about scenes, in which something is agreed on that the last reply has to keep to.

A name to be called by, words to end with, a part to play; then a question about a sound, which comes as a follow-up,
is taken back in mid-sentence for another one, breaks in on a reply, or is put in a voice that is glad or sad. What a
reply has to do is known (`judging.Facts`), and replies to be learnt do it as often as is asked for, so that a model
taught by them does it sometimes.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from stepaudio_jax.miniature.drawing import known, pick, say
from stepaudio_jax.miniature.judging import ANSWERS, WARM, Facts, rubric
from stepaudio_jax.miniature.questions import Question, make_question
from stepaudio_jax.miniature.scenes import MAX_EVENTS, Scene
from stepaudio_jax.text import Audio, Conversation, Turn, assistant, human

NAMES = ("Anna", "Ben", "Carl", "Dora", "Emil")
ENDINGS = ("Thank you", "Good night", "See you soon")
PARTS = ("friend", "teacher", "father")
MANNERS = ("follow-up", "correction", "interruption", "mood")
"""How the last question comes."""

STATEMENTS = {
    "timbre": "The tone is {}.",
    "direction": "The chirp is {}.",
    "order": "That sound was a {}.",
    "count": "I count {} of that sound.",
    "loudness": "The louder sound was {}.",
    "pitch": "The higher tone was {}.",
    "tempo": "The second click train is {}.",
    "arithmetic": "That makes {} of those sounds.",
}
MOODS = {"loud": "I am happy with you", "soft": "I am sorry to hear that"}
"""What a person hopes to hear whose voice is loud, and soft."""


@dataclasses.dataclass(frozen=True)
class Care:
    """How probably a reply that is to be learnt does each thing.

    Attributes:
      keeps: each point of what was agreed on. whole: answers in a sentence. warm: has a friendly word.
    """

    keeps: float = 1.0
    whole: float = 1.0
    warm: float = 1.0


@dataclasses.dataclass(frozen=True)
class Dialogue(Question):
    """Attributes:
    manner: of MANNERS.
    facts: what a reply is judged by.
    """

    manner: str = ""
    facts: Facts = dataclasses.field(default_factory=Facts)

    @property
    def rubric(self) -> str:
        return rubric(self.facts)


def make_dialogue(
    rng: np.random.Generator,
    kind: str | None = None,
    *,
    manner: str | None = None,
    care: Care = Care(),
    max_events: int = MAX_EVENTS,
) -> Dialogue:
    """A dialogue around a question of a kind (of ANSWERS; drawn evenly, if None) about a fresh scene.

    Raises:
      ValueError: an unknown kind or manner; a mood with another kind than "order"; as `make_question`.
    """
    manner = known(manner, MANNERS) if manner else pick(rng, MANNERS if kind in (None, "order") else MANNERS[:-1])
    if manner == "mood" and kind not in (None, "order"):
        raise ValueError(f'kind: expected "order" for a mood, whose voice is what is asked about, found "{kind}"')
    kind = "order" if manner == "mood" else known(kind, tuple(ANSWERS)) if kind else pick(rng, ANSWERS)
    question = _of_a_voice(rng) if manner == "mood" else make_question(rng, kind, max_events=max_events)
    assert question.scene is not None
    facts = _agreed(rng, question, manner)
    clip, asked = question.conversation.audio[0], question.conversation.turns[-2].text
    heard = human(Audio(clip.samples, f"{kind} dialogue"))
    heard = dataclasses.replace(heard, extra={"transcript": f"[{transcript(question.scene)}]"})
    first = _request(facts)
    turns: list[Turn] = [human(first), assistant(_reply(facts, "I will.", Care(), rng, first=True))]
    if manner == "correction":
        other = pick(rng, [wrong for wrong in _OTHERS if wrong != kind])
        heard = _with(heard, f"{_OTHERS[other]} No, wait. {asked}")
    elif manner == "interruption":
        turns += [human("What can you hear in a sound?"), assistant(say(rng, "I can hear many", "It may be that"))]
        heard = _with(heard, f"Stop. {asked}")
    elif manner == "mood":
        heard = _with(heard, f"Hear how I say it. {asked}")
    else:
        heard = _with(heard, f"And now. {asked}" if rng.random() < 0.5 else asked)
    reply = assistant(make_reply(rng, facts, care), think=question.conversation.turns[-1].think)
    columns = {"facts": dataclasses.asdict(facts), "rubric": rubric(facts)}
    whole = Conversation((*turns, heard, reply), extra=columns)
    return Dialogue(kind, whole, question.answer, question.scene, manner, facts)


def make_reply(rng: np.random.Generator, facts: Facts, care: Care = Care(), *, answer: str | None = None) -> str:
    """A last reply of a dialogue, as careful as asked for; with the right answer, or another."""
    answer = answer or facts.answer
    said = STATEMENTS[facts.kind].format(answer) if rng.random() < care.whole else answer
    return _reply(facts, said, care, rng)


def transcript(scene: Scene) -> str:
    """A sound in words, for those who cannot hear."""
    return ", ".join(event.description for event in scene.events)


_OTHERS = {"order": "What was the first", "timbre": "Is the tone pure or", "direction": "Does the chirp go"}
"""Questions of a kind that are taken back before they end."""


def _of_a_voice(rng: np.random.Generator) -> Question:
    """What a sound was: a voice, of somebody in a mood."""
    while True:
        seed = int(rng.integers(2**32))
        question = make_question(np.random.default_rng(seed), "order", max_events=1, sound=False)
        if question.answer == "vowel":
            return make_question(np.random.default_rng(seed), "order", max_events=1)


def _agreed(rng: np.random.Generator, question: Question, manner: str) -> Facts:
    """One or two things that the person asks for first, and what the manner of the last question asks for."""
    wanted = set(rng.permutation(["name", "ending", "part"])[: int(rng.integers(1, 3))].tolist())
    assert question.scene is not None
    mood = MOODS[question.scene.events[0].loudness] if manner == "mood" else ""
    return Facts(
        kind=question.kind,
        answer=question.answer,
        name=pick(rng, NAMES) if "name" in wanted else "",
        ending=pick(rng, ENDINGS) if "ending" in wanted else "",
        opening=f"My {pick(rng, PARTS)}" if "part" in wanted else "",
        mood=mood,
        corrected=manner == "correction",
        interrupted=manner == "interruption",
    )


def _request(facts: Facts) -> str:
    """What the person asks for before all else."""
    asked = []
    if facts.name:
        asked.append(f"Call me {facts.name}.")
    if facts.ending:
        asked.append(f"Always end with {facts.ending}.")
    if facts.opening:
        asked.append(f"Always begin with {facts.opening}.")
    return " ".join(asked)


def _reply(facts: Facts, answer: str, care: Care, rng: np.random.Generator, *, first: bool = False) -> str:
    """A reply around an answer, with each thing as probable as `care` says; the first one of a dialogue speaks of
    nothing but what was agreed on."""
    kept = {
        name: value if value and rng.random() < care.keeps else ""
        for name, value in (("opening", facts.opening), ("mood", facts.mood), ("name", facts.name))
    }
    ending = facts.ending if facts.ending and rng.random() < care.keeps else ""
    sentences = [f"{kept['opening']}."] if kept["opening"] else []
    if not first and facts.interrupted and rng.random() < care.keeps:
        sentences.append("Sure, I stop.")
    if not first and kept["mood"]:
        sentences.append(f"{kept['mood']}.")
    name = f", {kept['name']}" if kept["name"] else ""
    if not first and rng.random() < care.warm:
        sentences.append(f"{pick(rng, WARM)}{name}.")
    elif name:
        sentences.append(f"{kept['name']}.")
    sentences.append(answer)
    if ending:
        sentences.append(f"{ending}.")
    return " ".join(sentences)


def _with(turn: Turn, words: str) -> Turn:
    return dataclasses.replace(human(*turn.parts, words), extra=turn.extra)
