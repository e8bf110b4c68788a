"""What a data set turned out to hold: counts, durations, lengths, scripts, and every record that cannot be used."""

from __future__ import annotations

import dataclasses
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from stepaudio_jax.data.samples import RecordError, Sample, printable
from stepaudio_jax.text import Conversation

AUDIBLE = 10
"""Samples kept to be listened to."""

NAMES, FURTHER = 1000, "further names"
"""So many names of what is not read are counted one by one, since each record may have its own."""

QUANTILES = {"least": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "most": 1.0}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One good record. `tokens` is its rendered length, `seconds` of each of its clips, `characters` by script;
    `warnings` are of its sound."""

    sample: Sample
    tokens: int
    rejected_tokens: int
    seconds: tuple[float, ...]
    characters: Counter
    warnings: tuple[str, ...] = ()


class Findings:
    """Of a data set, gathered record by record.

    Attributes:
      total: records there are to look at.
      bad: (place, reason) of the records that cannot be used, in order.
      warnings: (place, reason) of clips of good records that are probably not what was meant.
      tokens: of each good record, with a pair's worse reply in it; seconds: of each clip.
      counts: of dialogues by what is in them, and of turns by role.
      unread: by name, the records that have a column or a field which no part of the model reads.
      audible: a few good records chosen at random, those with sound before those without.
    """

    def __init__(self, total: int):
        self.total = total
        self.good = 0
        self.bad: list[tuple[str, str]] = []
        self.warnings: list[tuple[str, str]] = []
        self.tokens: list[int] = []
        self.seconds: list[float] = []
        self.counts: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.characters: Counter[str] = Counter()
        self._chance = random.Random(0)
        self._drawn: list[tuple[bool, float, Sample]] = []

    @property
    def seen(self) -> int:
        return self.good + len(self.bad)

    @property
    def bad_share(self) -> float:
        return len(self.bad) / max(1, self.seen)

    @property
    def audible(self) -> list[Sample]:
        return [sample for _, _, sample in self._drawn]

    def add(self, found: Finding | RecordError, where: str):
        if isinstance(found, RecordError):
            self.bad.append((where, str(found).removeprefix(f"{where}: ")))
            return
        self.good += 1
        self.warnings += [(where, warning) for warning in found.warnings]
        self.tokens.append(found.tokens + found.rejected_tokens)
        self.seconds += found.seconds
        self.characters += found.characters
        turns = found.sample.conversation.turns
        self.counts.update(f"{turn.role} turns" for turn in turns)
        kinds = {
            "dialogues with sound": found.seconds,
            "dialogues with reasoning": any(turn.think for turn in turns),
            "dialogues with a silent first channel": found.warnings,
            "dialogues of several replies": sum(turn.role == "assistant" for turn in turns) > 1,
            "dialogues with <audio> as a word": not found.seconds and any("<audio>" in turn.text for turn in turns),
            "pairs to prefer by": found.sample.rejected,
        }
        for name in sorted(unread_names(found.sample)):
            self.unread[name if name in self.unread or len(self.unread) < NAMES else FURTHER] += 1
        self.counts.update(name for name, holds in kinds.items() if holds)
        self._drawn.append((not found.seconds, self._chance.random(), found.sample))
        self._drawn = sorted(self._drawn, key=lambda drawn: drawn[:2])[:AUDIBLE]

    def scripts(self) -> dict[str, float]:
        """Shares of all letters by Unicode script, the largest first."""
        letters = self.characters.total()
        return {name: count / letters for name, count in self.characters.most_common()}

    def to_json(self) -> dict:
        return {
            "records": self.total,
            "seen": self.seen,
            "good": self.good,
            "bad": len(self.bad),
            "bad_share": round(self.bad_share, 6),
            "counts": dict(self.counts),
            "unread": dict(self.unread.most_common()),
            "hours_of_sound": round(sum(self.seconds) / 3600, 4),
            "clip_seconds": quantiles(self.seconds),
            "tokens": sum(self.tokens),
            "record_tokens": quantiles(self.tokens),
            "scripts": {name: round(share, 6) for name, share in self.scripts().items()},
            "warnings": [{"where": where, "reason": reason} for where, reason in self.warnings],
            "bad_records": [{"where": where, "reason": reason} for where, reason in self.bad],
        }


def unread_names(sample: Sample) -> set[str]:
    """What a record holds beside its dialogues, which the formats keep in `extra`: its columns by name, the fields of
    its messages as "message.NAME"."""
    names: set[str] = set()
    for side in (sample.conversation, sample.rejected):
        if side is not None:
            names |= {*side.extra, *(f"message.{name}" for turn in side.turns for name in turn.extra)}
    return {printable(name, longest=100) for name in names}


def common_reasons(bad: Sequence[tuple[str, str]]) -> list[tuple[str, int]]:
    """Reasons and how often they stand in `bad`, what differs between equal ones left out, the commonest first."""
    return Counter(re.sub(r'"[^"]*"|\S*/\S*|\d+(\.\d+)?', "…", reason) for _, reason in bad).most_common()


def quantiles(values: list) -> dict[str, float]:
    """The points of QUANTILES and the mean; nothing of nothing."""
    if not values:
        return {}
    points = np.quantile(values, list(QUANTILES.values()))
    return {name: round(float(x), 3) for name, x in [*zip(QUANTILES, points, strict=True), ("mean", np.mean(values))]}


def letters_by_script(conversation: Conversation) -> Counter:
    """Letters of all turns and their reasoning, by Unicode script."""
    text = "".join(f"{turn.think or ''}{turn.text}" for turn in conversation.turns)
    letters: Counter[str] = Counter()
    for letter, count in Counter(text).items():
        if letter.isalpha():
            letters[_script(letter)] += count
    return letters


@lru_cache(maxsize=1 << 16)
def _script(letter: str) -> str:
    """A letter's script, which Unicode's names of letters begin with; Chinese characters are named CJK."""
    first = unicodedata.name(letter, "unnamed").split()[0]
    return "Han" if first == "CJK" else first.capitalize()
