"""Questions about scenes, with true answers and the reasoning that leads to them.

Every kind draws its answer first, evenly, and builds a scene for it, so that neither the wording nor the length of
the sound says anything about the answer. A reasoning trace lists what is heard, in order, then concludes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from stepaudio_jax.miniature import scenes
from stepaudio_jax.miniature.drawing import known, pick, say, shuffle, weave
from stepaudio_jax.miniature.scenes import Event, Scene
from stepaudio_jax.text import Audio, Conversation, Turn, assistant, human


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, its answer, and the whole conversation, whose last turn is the reply to be learnt."""

    kind: str
    conversation: Conversation
    answer: str
    scene: Scene | None = None

    @property
    def prompt(self) -> Conversation:
        """The conversation without the reply."""
        return dataclasses.replace(self.conversation, turns=self.conversation.turns[:-1])


@dataclasses.dataclass(frozen=True)
class _Draft:
    events: list[Event]
    asked: str
    reasoning: str
    answer: str
    history: tuple[str, str] | None = None
    """An earlier question about the sound, and its answer."""


def make_question(
    rng: np.random.Generator, kind: str | None = None, *, max_events: int = scenes.MAX_EVENTS, sound: bool = True
) -> Question:
    """A question of the given kind (any of KINDS, by default drawn evenly) about a fresh scene.

    Args:
      max_events: most events of a scene, for a curriculum; kinds that compare or count several take at least two
        (a pair), three (dialogue) or four (arithmetic) even where it is less.
      sound: False leaves the clip empty, for those who want the words only.

    Raises:
      ValueError: an unknown kind, or a number of events that no scene can have.
    """
    if not 1 <= max_events <= scenes.MAX_EVENTS:
        raise ValueError(f"max_events: {max_events}, expected 1 to {scenes.MAX_EVENTS}")
    kind = known(kind, KINDS) if kind else KINDS[int(rng.integers(len(KINDS)))]
    draft = _MAKERS[kind](rng, max_events)
    scene = scenes.arrange(rng, draft.events)
    clip = Audio(scenes.render(scene) if sound else np.zeros(0, np.float32), f"{kind} scene")
    heard = "".join(f"\n{place} {event.description}" for place, event in enumerate(scene.events, 1))
    think = f"I hear:{heard}\n{draft.reasoning}"
    turns: tuple[Turn, ...] = (human(clip, draft.asked),)
    if draft.history is not None:
        earlier, said = draft.history
        turns = (human(clip, earlier), assistant(said), human(draft.asked))
    return Question(kind, Conversation((*turns, assistant(draft.answer, think=think))), draft.answer, scene)


def silenced(question: Question, *, background: bool = False) -> Question:
    """The same question with its sound gone: every sample zero, or only the scene's background left.

    Nothing tells the answer any more. The reply to be learnt says so and guesses: its answer is still the true one,
    so a model learns to give any answer that could be.
    """
    *turns, reply = question.conversation.turns
    heard = question.conversation.audio[0]
    samples = np.zeros_like(heard.samples)
    if background and question.scene is not None:
        samples = scenes.render(dataclasses.replace(question.scene, events=()))
    clip = Audio(samples, heard.name)
    turns = [
        dataclasses.replace(turn, parts=tuple(clip if isinstance(part, Audio) else part for part in turn.parts))
        for turn in turns
    ]
    guess = assistant(reply.text, think="I hear nothing, so I guess.")
    return dataclasses.replace(question, conversation=Conversation((*turns, guess)))


def _count(rng: np.random.Generator, max_events: int) -> _Draft:
    size = _size(rng, max_events, at_least=min(3, max_events))
    answer = int(rng.integers(min(3, size) + 1))
    kind = _kind(rng)
    events = [_event(rng, kind) for _ in range(answer)] + _fill(rng, size - answer, without=(kind,))
    asked = say(rng, "How many {} do you hear?", "How many {} are there?", "Count the {}.", "What is the number of {}?")
    return _Draft(shuffle(rng, events), asked.format(_many(kind)), f"{_tally(kind, answer)} So {answer}.", str(answer))


def _direction(rng: np.random.Generator, max_events: int) -> _Draft:
    answer = pick(rng, scenes.DIRECTIONS)
    events = [_event(rng, "chirp", trait=answer), *_fill(rng, _size(rng, max_events) - 1, without=("chirp",))]
    asked = say(
        rng,
        "Is the chirp rising or falling?",
        "Does the chirp go up or down, rising or falling?",
        "In which direction does the chirp go?",
        "What is the direction of the chirp?",
    )
    return _Draft(shuffle(rng, events), asked, f"The chirp is {answer}.", answer)


def _loudness(rng: np.random.Generator, max_events: int) -> _Draft:
    answer, loudness = _first_or_second(rng, "loud", "soft")
    if rng.random() < 0.5:
        noun = "sound"
        events = [_event(rng, None, loudness=each) for each in loudness]
        events += _fill(rng, _size(rng, max_events, at_least=2) - 2)
    else:
        noun = _kind(rng)
        pair = [_event(rng, noun, loudness=each) for each in loudness]
        events = weave(rng, pair, _fill(rng, _size(rng, max_events, at_least=2) - 2, without=(noun,)))
    asked = say(
        rng,
        "Which {} was louder, the first or the second?",
        "Was the first or the second {} louder?",
        "Which was the louder {}, the first or the second?",
    )
    places = (1, 2) if noun == "sound" else _places(events, noun)
    return _Draft(events, asked.format(noun), _two(places, loudness), answer)


def _pitch(rng: np.random.Generator, max_events: int) -> _Draft:
    answer, pitches = _first_or_second(rng, "high", "low")
    pair = [_event(rng, "tone", pitch=each) for each in pitches]
    events = weave(rng, pair, _fill(rng, _size(rng, max_events, at_least=2) - 2, without=("tone",)))
    asked = say(
        rng,
        "Which tone was higher, the first or the second?",
        "Was the first or the second tone higher?",
        "Which tone had the higher pitch, the first or the second?",
    )
    return _Draft(events, asked, _two(_places(events, "tone"), pitches), answer)


def _timbre(rng: np.random.Generator, max_events: int) -> _Draft:
    answer = pick(rng, scenes.TIMBRES)
    events = [_event(rng, "tone", trait=answer), *_fill(rng, _size(rng, max_events) - 1, without=("tone",))]
    asked = say(
        rng,
        "What is the timbre of the tone?",
        "Is the tone pure, bright or hollow?",
        "What timbre does the tone have?",
        "How does the tone sound: pure, bright or hollow?",
    )
    return _Draft(shuffle(rng, events), asked, f"The tone is {answer}.", answer)


def _tempo(rng: np.random.Generator, max_events: int) -> _Draft:
    answer = pick(rng, ("faster", "slower"))
    tempos = ("slow", "fast") if answer == "faster" else ("fast", "slow")
    pair = [_event(rng, "click train", trait=each) for each in tempos]
    events = weave(rng, pair, _fill(rng, _size(rng, max_events, at_least=2) - 2, without=("click train",)))
    asked = say(
        rng,
        "Was the second click train faster or slower than the first?",
        "Is the second click train faster or slower?",
        "Compared with the first click train, was the second faster or slower?",
    )
    return _Draft(events, asked, _two(_places(events, "click train"), tempos), answer)


def _order(rng: np.random.Generator, max_events: int) -> _Draft:
    answer = _kind(rng)
    size = _size(rng, max_events, at_least=min(2, max_events))
    if size == 1 or rng.random() < 0.5:
        where = pick(rng, ("first", "second", "last") if size > 1 else ("first", "last"))
        place = {"first": 0, "second": 1, "last": size - 1}[where]
        events = _fill(rng, size)
        events[place] = _event(rng, answer)
        asked = say(rng, "What was the {} sound?", "Which sound came {}?", "What kind of sound was {}?")
        return _Draft(events, asked.format(where), f"The {where} is {place + 1}: {answer}.", answer)
    before = _kind(rng, without=(answer,))
    events = _fill(rng, size, without=(before,))
    place = int(rng.integers(size - 1))
    events[place], events[place + 1] = _event(rng, before), _event(rng, answer)
    asked = say(
        rng, "What came right after the {}?", "Which sound followed the {}?", "What did you hear right after the {}?"
    )
    return _Draft(events, asked.format(before), f"The {before} is {place + 1}. Then {place + 2}: {answer}.", answer)


def _arithmetic(rng: np.random.Generator, max_events: int) -> _Draft:
    size = _size(rng, max(max_events, 4), at_least=4)
    answer = int(rng.integers(4))
    one = _kind(rng)
    two = _kind(rng, without=(one,))
    if rng.random() < 0.5:
        a = int(rng.integers(answer + 1))
        b, sign = answer - a, "+"
        asked = say(
            rng,
            "How many {} and {} are there together?",
            "How many {} and {} do you hear in all?",
            "Add the number of {} to the number of {}.",
        )
    else:
        b = int(rng.integers((size - answer) // 2 + 1))
        a, sign = answer + b, "-"
        asked = say(
            rng,
            "How many more {} than {} are there?",
            "How many more {} than {} do you hear?",
            "Take the number of {}, less the number of {}.",
        )
    events = [_event(rng, one) for _ in range(a)] + [_event(rng, two) for _ in range(b)]
    events += _fill(rng, size - a - b, without=(one, two))
    reasoning = f"{_tally(one, a)} {_tally(two, b)} {a} {sign} {b} = {answer}."
    return _Draft(shuffle(rng, events), asked.format(_many(one), _many(two)), reasoning, str(answer))


def _dialogue(rng: np.random.Generator, max_events: int) -> _Draft:
    size = _size(rng, max(max_events, 3), at_least=3)
    kind, loudness = _kind(rng), pick(rng, scenes.LOUDNESS)
    other = "soft" if loudness == "loud" else "loud"
    number = int(rng.integers(2, 4))
    answer = int(rng.integers(3))
    levels = shuffle(rng, [loudness] * answer + [other] * (number - answer))
    named = [_event(rng, kind, loudness=each) for each in levels]
    events = weave(rng, named, _fill(rng, size - number, without=(kind,)))
    earlier = say(rng, "How many {} do you hear?", "How many {} are there?").format(_many(kind))
    asked = say(rng, "And how many of them were {}?", "How many of them are {}?", "And how many of those were {}?")
    seen = ", ".join(f"{place} {level}" for place, level in zip(_places(events, kind), levels, strict=True))
    reasoning = f"{_many(kind).capitalize()}: {seen}. {_tally(loudness, answer)} So {answer}."
    return _Draft(events, asked.format(loudness), reasoning, str(answer), history=(earlier, str(number)))


_MAKERS: dict[str, Callable[[np.random.Generator, int], _Draft]] = {
    "count": _count,
    "direction": _direction,
    "loudness": _loudness,
    "pitch": _pitch,
    "timbre": _timbre,
    "tempo": _tempo,
    "order": _order,
    "arithmetic": _arithmetic,
    "dialogue": _dialogue,
}
KINDS = tuple(_MAKERS)


def _many(kind: str) -> str:
    return kind + "s"


def _places(events: list[Event], kind: str) -> list[int]:
    """Where in the list the sounds of a kind stand, counted from 1."""
    return [place for place, event in enumerate(events, 1) if event.kind == kind]


def _two(places: Sequence[int], words: Sequence[str]) -> str:
    """Two entries of the list, looked up: "First: 2 loud. Second: 5 soft." """
    return f"First: {places[0]} {words[0]}. Second: {places[1]} {words[1]}."


def _tally(name: str, number: int) -> str:
    """Counting aloud: "Tones: 1, 2." """
    counted = ", ".join(str(i + 1) for i in range(number)) or "none"
    return f"{(_many(name) if name in scenes.KINDS else name).capitalize()}: {counted}."


def _size(rng: np.random.Generator, max_events: int, *, at_least: int = 1) -> int:
    return int(rng.integers(at_least, max(max_events, at_least) + 1))


def _event(rng: np.random.Generator, kind: str | None, **fixed: str) -> Event:
    return scenes.random_event(rng, kind, **fixed)


def _kind(rng: np.random.Generator, *, without: tuple[str, ...] = ()) -> str:
    return pick(rng, [kind for kind in scenes.KINDS if kind not in without])


def _fill(rng: np.random.Generator, number: int, *, without: tuple[str, ...] = ()) -> list[Event]:
    return [_event(rng, _kind(rng, without=without)) for _ in range(number)]


def _first_or_second(rng: np.random.Generator, more: str, less: str) -> tuple[str, tuple[str, str]]:
    answer = pick(rng, ("the first", "the second"))
    return answer, ((more, less) if answer == "the first" else (less, more))
