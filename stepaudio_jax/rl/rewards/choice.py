"""Multiple choice: which option an answer states, by its letter or by its text."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from stepaudio_jax.rl.rewards.registry import accuracy
from stepaudio_jax.rl.rewards.sample import Sample
from stepaudio_jax.rl.rewards.text import last_boxed, normalise, trim, unwrap_text

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WITHOUT_OPTIONS = "ABCDEFGH"  # the letters an answer may name where the record gives no options
_MARKERS = (  # the first that says anything counts
    re.compile(r"(?<![a-z])answer(?![a-z])|答案", re.IGNORECASE),
    re.compile(r"(?<![a-z])(?:option|choice|choose|pick)(?![a-z])|选项|选择|选", re.IGNORECASE),
)
_END = re.compile(r"[.!?](?=\s|$)|[。\n]")
_ALONE = re.compile(r"\W*+(?:(?:is|be|为|是)\W*+)?([A-Za-z])\W*+")
_OPENING = re.compile(r"[\s:]*+(?:is[\s:]++|[为是])?([A-Za-z])[).:](?=\s|$)")  # b) dog
_BARE = re.compile(r"(?<![A-Za-z0-9'’])([A-Z])(?![A-Za-z0-9'’#♯♭]|-[A-Za-z])")
_PARENTHESISED = re.compile(r"[(\[]\s?([A-Za-z])\s?[)\]]")
_IS = re.compile(r"\s*([A-Z])\s+is\b")  # B is the right one
_ARTICLE = re.compile(r"\s+(?!(?:or|and|because|since|as|is|but|not|for)\b)[a-z]")  # after "A" or "I": a word
_BETWEEN = re.compile(r"[\s.):,*\]—–-]*(?:(?:the|an?)\s+)?", re.IGNORECASE)
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|nor|no|neither|than|instead of)|n['’]t|不是)\s*(?:(?:the|an?|option|choice|answer)\s+)*[(\[\"]?$",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(r"[)\]\"]?\s+(?:is(?:n['’]t| not| wrong| incorrect| false)\b)", re.IGNORECASE)
_PREFIX = re.compile(r"\s*[(\[]?([A-Za-z])[)\].:]\s*(?=\S)")  # of an option that brings its own letter


class _Options:
    """Letters of a question and the texts they stand for.

    Attributes:
      letters: those that an answer may name.
      by_text: normalised text → letter.
      pattern: finds an option's text in an answer, the longest there is, in a group of its own.
    """

    def __init__(self, texts: Mapping[str, str]):
        self.letters = "".join(texts) or _WITHOUT_OPTIONS
        self.by_text = {normalise(text): letter for letter, text in texts.items()}
        if len(self.by_text) < len(texts):
            raise ValueError(f"choices: expected different texts, found {dict(texts)}")
        longest_first = sorted(((trim(text), letter) for letter, text in texts.items()), key=lambda pair: -len(pair[0]))
        ours = "|".join("(" + r"\s+".join(map(re.escape, text.split())) + ")" for text, _ in longest_first)
        self._groups = [letter for _, letter in longest_first]
        self.pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{ours or '(?!)'})(?![A-Za-z0-9])", re.IGNORECASE)

    def letter(self, match: re.Match[str]) -> str:
        """Of the option that `pattern` has found."""
        return self._groups[(match.lastindex or 0) - 1]


@accuracy("choice", cheap=True)
def choice(sample: Sample) -> bool:
    """Does the answer state the true option? The last statement counts; one that names two options is wrong.

    The truth is a letter, an option's text, both ("B. dog") or an index from 0; the record's column `choices` holds
    the options, as texts in order or letter → text. Without it only letters up to H are read.

    Raises:
      ValueError: a truth that is none of the options, or could be two; options that are no texts or not different.
    """
    options = _options(sample.extra.get("choices"))
    return stated(sample.answer, options) == _true_letter(sample.truth, options)


def stated(answer: str, options: _Options) -> str | None:
    """The letter of the option that an answer states; None where it states none, or two at once.

    Looked at in this order, the first that says anything counts: the last \\boxed{…}; the whole answer, where it is
    but a letter or an option's text; what follows the last "answer" in its sentence; then the last "option" or the
    like; then lines from the last upwards, in which a letter must be marked as one: "(B)", "B.", "B is".
    """
    answer = unicodedata.normalize("NFKC", unwrap_text(answer)).replace("*", "").replace("`", "")
    if (boxed := last_boxed(answer)) is not None:
        return _only(_reading(boxed, options, bare=True))
    if whole := _whole(answer, options):
        return _only(whole)
    for marker in _MARKERS:
        end = len(answer)
        for match in reversed(list(marker.finditer(answer))):
            statement, end = _sentence(answer[match.end() : end], options), match.start()
            if read := _reading(statement, options, bare=True):
                return _only(read)
    for line in reversed(answer.splitlines()):
        if line.strip() and (read := _reading(line, options, bare=False)):
            return _only(read)
    return None


def _only(letters: set[str]) -> str | None:
    return next(iter(letters)) if len(letters) == 1 else None


def _whole(statement: str, options: _Options) -> set[str]:
    """The options that a statement as a whole is the letter or the text of."""
    found = set()
    if (match := _ALONE.fullmatch(statement)) and match.group(1).upper() in options.letters:
        found.add(match.group(1).upper())
    if (letter := options.by_text.get(normalise(statement))) is not None:
        found.add(letter)
    return found


def _reading(statement: str, options: _Options, *, bare: bool) -> set[str]:
    """The options that a statement names, but for those that it denies. A letter outweighs texts, unless another
    option's text stands beside it: "B. cat", "dog (A)"."""
    if whole := _whole(statement, options):
        return whole
    texts = {match.start(): match for match in options.pattern.finditer(statement)}
    taken = {at for match in texts.values() if len(match.group()) > 1 for at in range(*match.span())}
    letters = [
        match
        for match in _marks(statement, bare=bare)
        if match.group(1).upper() in options.letters
        and match.start(1) not in taken
        and not _denied(statement, *match.span(1))
    ]
    if not letters:
        return {options.letter(match) for match in texts.values() if not _denied(statement, *match.span())}
    found = {match.group(1).upper() for match in letters}
    if len(found) == 1:
        after = {between.end() for match in letters if (between := _BETWEEN.match(statement, match.end(1)))}
        before = {_skip_back(statement, match.start(1)) for match in letters}
        beside = [text for text in texts.values() if text.start() in after or text.end() in before]
        found |= {options.letter(text) for text in beside}
    return found


def _skip_back(statement: str, at: int) -> int:
    """Where the text before a letter ends, spaces and an opened bracket left out."""
    gap = statement[max(0, at - 4) : at]
    return at - len(gap) + len(gap.rstrip(" (["))


def _denied(statement: str, start: int, end: int) -> bool:
    """Is it said of what stands there that it is not so? "not the cat", "B is wrong"."""
    before = statement[max(0, start - 40) : start]
    return bool(_DENIED_BEFORE.search(before) or _DENIED_AFTER.match(statement, end))


def _marks(statement: str, *, bare: bool):
    """Matches of what may be an option's letter; "A dog" and "I think" hold none."""
    yield from _PARENTHESISED.finditer(statement)
    for pattern in (_OPENING, _IS):
        if match := pattern.match(statement):
            yield match
    if bare:
        for match in _BARE.finditer(statement):
            if match.group(1) not in "AI" or not _ARTICLE.match(statement, match.end()):
                yield match


def _sentence(text: str, options: _Options) -> str:
    """The text up to its first sentence's end. The period of "B. dog" ends none where dog is an option."""
    for match in _END.finditer(text):
        before = text[max(0, match.start() - 2) : match.start()]
        lone = match.group() == "." and before[-1:].isalpha() and not before[:-1].isalnum()
        between = _BETWEEN.match(text, match.end()) if lone else None
        if between is None or not options.pattern.match(text, between.end()):
            return text[: match.start()]
    return text


def _true_letter(truth: Any, options: _Options) -> str:
    if isinstance(truth, Integral) and not isinstance(truth, bool):
        index = int(truth)
        found = set(options.letters[index : index + 1] if index >= 0 else "") | _whole(str(index), options)
    else:
        text = truth.decode() if isinstance(truth, bytes) else str(truth)
        found = _whole(text, options)
        if not found and (match := _PREFIX.match(text)):
            named = options.by_text.get(normalise(text[match.end() :]))
            found = {match.group(1).upper()} & {named}
    if len(found) != 1:
        known = ", ".join(f"{letter}: {text}" for text, letter in options.by_text.items()) or options.letters
        raise ValueError(f"truth: expected one of the options ({known}), found {truth!r}")
    return next(iter(found))


def _options(choices: Any) -> _Options:
    if choices is None:
        return _read_options(())
    if isinstance(choices, Mapping):
        pairs = [(str(letter).strip().upper(), text) for letter, text in choices.items()]
    elif isinstance(choices, str | bytes) or not hasattr(choices, "__iter__"):
        raise ValueError(f"choices: expected the options' texts or letter → text, found {choices!r}")
    else:
        pairs = list(zip(_LETTERS + "?", choices, strict=False))  # no letter for a 27th
    letters = [letter for letter, _ in pairs]
    known = set(letters) <= set(_LETTERS) and len(set(letters)) == len(letters)
    if not pairs or not known or not all(isinstance(text, str) for _, text in pairs):
        raise ValueError(f"choices: expected the options' texts or letter → text, found {choices!r}")
    return _read_options(tuple(pairs))


@functools.lru_cache(maxsize=256)
def _read_options(pairs: tuple[tuple[str, str], ...]) -> _Options:
    prefixes = [_PREFIX.match(text) for _, text in pairs]
    if all(match and match.group(1).upper() == letter for match, (letter, _) in zip(prefixes, pairs, strict=True)):
        pairs = tuple(
            (letter, text[match.end() :]) for match, (letter, text) in zip(prefixes, pairs, strict=True) if match
        )
    return _Options(dict(pairs))
