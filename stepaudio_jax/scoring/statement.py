"""What a reply states, of the answers it mentions: the last that it commits to, unless it denies that or takes it back.

A scorer finds the mentions; their order and the words around them (denied.py, doubted.py, asserted.py) decide here, for
all scorers alike. Each mention is asserted, denied, or neither: asked, supposed, one of several alternatives. What is
asserted has a strength: a box or "the answer is" outweighs "so", that outweighs "it is", and that a mention in
passing. The last of the strongest counts. Two answers at once are none.
"""

from __future__ import annotations

import bisect
import dataclasses
import enum
import re
from collections.abc import Hashable, Iterable, Sequence

from stepaudio_jax.scoring import asserted, denied, doubted, patterns
from stepaudio_jax.scoring.normal import CJK

MOST_MENTIONS = 300
"""Mentions that are looked at, the last ones."""

_WINDOW = 100  # characters before and after a mention that bear on it
_END = re.compile(rf"[!?！？。;；\n]+|\.(?=\s|$|[{CJK}])|\.{{3,}}")
_NAMES_ANSWER = re.compile(
    r"((?:answer|option|choice|conclusion|result|solution|答案|结论|选项|选择|答)\s*(?:is|are|be|是|为|は)?\s*:?"
    r"[ \t]*)\n\s*|"
    r"((?:\bis|=|:|是|为)[ \t]*)\n\s*(?=\$|\\)",
    re.IGNORECASE,
)


class Strength(enum.IntEnum):
    """How far a reply commits itself to what it mentions."""

    NONE = 0
    MENTIONED = 1
    SAID = 2
    CONCLUDED = 3
    ANSWERED = 4


@dataclasses.dataclass(frozen=True)
class Mention:
    """A place where a text names an answer.

    Attributes:
      start, end: where, in characters.
      values: what it names; several where it contradicts itself ("B. cat" of another option's text).
      letter: it is an option's letter alone.
      strength: what it has by itself, whatever stands around it.
      passing: counts even where only mentioned in passing.
      neutral: states nothing and links with nothing, but is no part of the words around others.
    """

    start: int
    end: int
    values: frozenset[Hashable]
    letter: bool = False
    strength: Strength = Strength.NONE
    passing: bool = True
    neutral: bool = False


def join_lines(text: str) -> str:
    """A line that only announces the answer, and the next one, in one line."""
    return _NAMES_ANSWER.sub(lambda match: (match[1] or match[2]) + " ", text)


def stated(
    text: str,
    mentions: Sequence[Mention],
    *,
    unit: str = "",
    ranges: str = "",
    least: Strength = Strength.MENTIONED,
    among: Iterable[Hashable] = (),
) -> Hashable | None:
    """The one value that a text states; None where it states none, or several at once.

    Args:
      mentions: in order, apart from each other.
      unit: a pattern of what may follow a mention as part of it, like "apples" a number.
      ranges: a pattern of what, between two mentions, makes them the ends of a range, or parts of one quantity.
      least: what is stated less strongly is not stated.
      among: all there are to choose from. Where nothing is stated and all but one are denied, that one is stated.
    """
    reading = _Reading(text, mentions[-MOST_MENTIONS:], unit, ranges)
    value = reading.result()
    if value is None:
        return reading.left_of(among)
    return value if reading.strength >= least else None


class _Reading:
    """One text being read from its beginning to its end."""

    def __init__(self, text: str, mentions: Sequence[Mention], unit: str, ranges: str):
        masked = list(text)
        for mention in mentions:
            masked[mention.start : mention.end] = patterns.HOLE * (mention.end - mention.start)
        self.text = "".join(masked)
        self.mentions = mentions
        self.ends = [0]
        for match in _END.finditer(self.text):
            self.ends.append(match.end())
        self.ends.append(len(self.text))
        self.unit = re.compile(rf"^\s?(?:{unit})") if unit else None
        self.ranges = re.compile(rf"^(?:{ranges})$", re.IGNORECASE) if ranges else None
        self.values: frozenset[Hashable] = frozenset()
        self.strength = Strength.NONE
        self.at = 0  # where what is stated so far stands
        self.rejected: set[Hashable] = set()

    def result(self) -> Hashable | None:
        previous_end, index = 0, 0
        groups = self._groups()
        for index, group in enumerate(groups):
            following = groups[index + 1][0].start if index + 1 < len(groups) else len(self.text)
            self._take_back(previous_end, group[0].start)
            self._read(group, previous_end, following)
            previous_end = group[-1].end
        self._take_back(previous_end, len(self.text))
        if len(self.values) != 1 or self._is_refused():
            return None
        return next(iter(self.values))

    def left_of(self, among: Iterable[Hashable]) -> Hashable | None:
        """The only one that is not denied, where nothing is stated."""
        left = set(among) - self.rejected
        if len(left) != 1 or self.values or doubted.REFUSAL.search(self.text) or denied.TAKEN_BACK.search(self.text):
            return None
        return left.pop()

    def _is_refused(self) -> bool:
        """Does it say that it cannot tell, and then only guess, "I don't know, maybe 10", or tell of the question?"""
        if self.strength == Strength.SAID:
            before = self.text[self._sentence(self.at)[0] : self.at]
            return bool(doubted.REFUSAL.search(before)) and not doubted.CONTRAST.search(before)
        return self.strength == Strength.MENTIONED and bool(doubted.REFUSAL.search(self.text))

    # Which mentions belong together

    def _groups(self) -> list[list[Mention]]:
        groups: list[list[Mention]] = []
        for mention in self.mentions:
            if mention.neutral:
                continue
            if groups and self._linked(groups[-1], mention):
                groups[-1].append(mention)
            else:
                groups.append([mention])
        return groups

    def _linked(self, group: list[Mention], mention: Mention) -> bool:
        last = group[-1]
        between = self.text[last.end : mention.start]
        if len(between) > 40 or "\n" in between or Strength.ANSWERED in (mention.strength, last.strength):
            return False
        if self.ranges is not None and self.ranges.match(between):
            return True
        if doubted.OR.match(between):
            return True
        if self.unit is not None and (unit := self.unit.match(between)):
            between = between[unit.end() :]
        if doubted.OR.match(between) or doubted.ALTERNATIVE.match(between):
            return True
        if not doubted.AND.match(between):
            return False
        comma = between.strip() in (",", "")
        after = self.text[mention.end : mention.end + _WINDOW]
        if between.strip() == "," and asserted.STATED_AFTER_OF_ONE.match(after):
            return False  # "between A and B, A is the best"
        return not (
            comma and (last.letter or self.unit) and len(group) == 1 and self._is_marked(last) and between.strip()
        )

    def _is_marked(self, mention: Mention) -> bool:
        before = self.text[max(self._sentence(mention.start)[0], mention.start - _WINDOW) : mention.start]
        return bool(asserted.ANSWER_BEFORE.search(before) or asserted.STATED_BEFORE.search(before))

    # What is said of a group

    def _sentence(self, at: int) -> tuple[int, int]:
        place = bisect.bisect_right(self.ends, at)
        return self.ends[place - 1], self.ends[place] if place < len(self.ends) else len(self.text)

    def _read(self, group: list[Mention], previous_end: int, following: int) -> None:
        first, last = group[0], group[-1]
        begin, _ = self._sentence(first.start)
        _, end = self._sentence(last.end - 1 if last.end > last.start else last.end)
        sentence_before = self.text[max(begin, first.start - 2 * _WINDOW) : first.start]
        before = self.text[max(begin, previous_end, first.start - _WINDOW) : first.start]
        after = self.text[last.end : min(end, following, last.end + _WINDOW)]
        before = denied.AFFIRMING.sub(lambda match: " " * len(match.group()), before)
        ended_by = self.text[last.end : min(end, last.end + _WINDOW)]
        values = frozenset().union(*(mention.values for mention in group))

        if denied.IS_NO_OTHER_BEFORE.search(before) and denied.IS_NO_OTHER_AFTER.match(after):
            return self._state(values, Strength.ANSWERED, first.start)
        if denied.ONLY_EXCEPTION_BEFORE.search(before) and denied.ONLY_EXCEPTION_AFTER.match(after):
            return self._state(values, Strength.ANSWERED, first.start)
        if denied.DENIED_BEFORE.search(before) and not (len(group) > 1 and self._is_either(group)):
            return self._deny(values)
        after = denied.AFFIRMING.sub(lambda match: " " * len(match.group()), self._own(after, following))
        opens = not self.text[begin : first.start].strip()
        if denied.DENIED_AFTER.match(after) or (opens and denied.VERDICT_DENIED.match(after)):
            return self._deny(values)
        letter = any(mention.letter for mention in group)
        if self.unit is None and (denied.DENIED_AFTER_LETTER if letter else denied.DENIED_AFTER_TEXT).match(after):
            if self.strength <= Strength.MENTIONED and self.values <= values:
                self.values = frozenset()
            return None
        supposed = doubted.CONDITION.search(sentence_before) or doubted.CONDITION_AFTER.match(after)
        if supposed or doubted.QUESTION.search(ended_by[: following - last.end + 1]):
            return None
        between = self.text[previous_end : first.start]
        also = doubted.ALSO_POSSIBLE.match(after) or doubted.ALTERNATIVE.match(between)
        if also and self.values and not self.values & self.rejected:
            self.values |= values
            return None
        strength = self._strength(group, before, after)
        if opens and asserted.VERDICT_STATED.match(after):
            strength = Strength.ANSWERED
        if strength == Strength.MENTIONED and not all(mention.passing for mention in group):
            return None
        since = self.text[max(begin, self.at) : first.start]
        if self.values and strength < Strength.ANSWERED and doubted.REASON.search(since):
            return None  # the reason for what was stated is not stated for itself
        if self.values and self.values != values and doubted.CORRECTED.search(between[-_WINDOW:]):
            strength = Strength.ANSWERED
        return self._state(values, strength, first.start)

    def _is_either(self, group: list[Mention]) -> bool:
        """Of "not A if not B" in Chinese, which means one of both."""
        return "就是" in self.text[group[0].end : group[1].start] or "便是" in self.text[group[0].end : group[1].start]

    def _own(self, after: str, following: int) -> str:
        """What follows a mention, without what denies the next one: "B, not A"."""
        if following < len(self.text) and (match := denied.DENIED_BEFORE.search(after)):
            return after[: match.start()]
        return after

    def _strength(self, group: list[Mention], before: str, after: str) -> Strength:
        first, last = group[0], group[-1]
        found = max(mention.strength for mention in group)
        once = doubted.ONCE.search(re.split(r"[,;]|\bbut\b", before)[-1])
        if (
            asserted.ANSWER_BEFORE.search(before)
            or asserted.CHOSEN_BEFORE.search(before)
            or asserted.STATED_AFTER.match(after)
        ):
            found = max(found, Strength.SAID if once else Strength.ANSWERED)
        elif self._is_concluded(group, before):
            found = max(found, Strength.SAID if once else Strength.CONCLUDED)
        elif asserted.SAID_BEFORE.search(before) or self._is_alone(first, last):
            found = max(found, Strength.SAID)
        return max(found, Strength.MENTIONED)

    def _is_concluded(self, group: list[Mention], before: str) -> bool:
        if asserted.STATED_BEFORE.search(before) or (group[0].letter and asserted.ONLY_BEFORE.search(before)):
            return True
        return group[-1] is self.mentions[-1] and bool(asserted.CONCLUSION_BEFORE.search(before))

    def _is_alone(self, first: Mention, last: Mention) -> bool:
        """Is a sentence, or its part up to a comma, nothing but this?"""
        begin = self._sentence(first.start)[0]
        before = self.text[max(begin, first.start - _WINDOW) : first.start]
        before = before[max(before.rfind(mark) for mark in (",", ":", "—")) + 1 :]
        after = self.text[last.end : last.end + _WINDOW]
        if self.unit is not None and (unit := self.unit.match(after)):
            after = after[unit.end() :]
        return bool(asserted.ALONE_BEFORE.match(before) and asserted.ALONE_AFTER.match(after))

    # What becomes of it

    def _state(self, values: frozenset[Hashable], strength: Strength, at: int) -> None:
        if strength == Strength.MENTIONED and values <= self.rejected:
            return
        if strength < self.strength:
            return
        between = self.text[self.at : at]
        beside = "\n" not in between and not doubted.CONTRAST.search(between)
        if strength == self.strength == Strength.MENTIONED and self.unit is None and beside:
            values |= self.values
        self.values, self.strength, self.at = values, strength, at

    def _deny(self, values: frozenset[Hashable]) -> None:
        self.rejected |= values
        if self.values & values:
            self.values -= values
            self.strength = Strength.NONE

    def _take_back(self, begin: int, end: int) -> None:
        """Looks for "that is wrong" in the sentences between two groups."""
        if not self.values:
            return
        between = self.text[begin : min(end, begin + 6 * _WINDOW)]
        at = bisect.bisect_left(self.ends, begin)
        starts = [place for place in self.ends[at : at + 20] if place < end]
        alone = any(denied.TAKEN_BACK_ALONE.match(self.text[start : min(end, start + _WINDOW)]) for start in starts)
        if alone or denied.TAKEN_BACK.search(between):
            self.rejected |= self.values
            self.values, self.strength = frozenset(), Strength.NONE
