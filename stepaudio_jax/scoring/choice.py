"""Multiple choice: which option a reply states, by its letter or by its text."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any

from stepaudio_jax.scoring.normal import CJK, boxes, flat, normalise, shorten, trim
from stepaudio_jax.scoring.number import exactly, is_bound, worded
from stepaudio_jax.scoring.option_pattern import option_pattern
from stepaudio_jax.scoring.statement import Mention, Strength, join_lines, stated

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WITHOUT_OPTIONS = "ABCDEFGH"  # the letters that a reply may name where the record gives no options
_ALONE = re.compile(r"\W*+(?:(?:is|be|为|是)\W*+)?([A-Za-z])\W*+")
_PARENTHESISED = re.compile(r"[(\[【]\s?([A-Za-z])\s?[)\]】]")
_NOT_AN_OPTION = r"(?!\s*(?:minor|major|flat|sharp|maj|min)\b|\s*[大小]?调)"
_BARE = re.compile(rf"(?<![A-Za-z0-9'’])([A-Z])(?![A-Za-z0-9'’#♯♭+]|-[A-Za-z]){_NOT_AN_OPTION}")
_SEVERAL = re.compile(r"(?<![A-Za-z0-9'’])([A-Z]{2,8})(?![A-Za-z0-9'’-])")
_SMALL = re.compile(
    r"(?:\b(?:answer|option|choice|choose|pick)(?:\s+(?:is|would\s+be))?\s*:?\s*[\"“]?|"
    r"^[ \t\"“]*(?=[a-z][).:](?:\s|$)))"
    r"([a-z])(?![A-Za-z0-9'’])",
    re.IGNORECASE | re.MULTILINE,
)
_OPENING = re.compile(rf"^[ \t]*([A-Z])(?:[).:、](?=\s|$|[{CJK}])|[.。]$|(?=[,;。]))", re.MULTILINE)
_NAME_OF = re.compile(
    r"(?:\b(?:vitamin|plan|speaker|person|figure|part|section|point|type|grade|track|clip|player|group|team|class|room|gate|"
    r"hepatitis|note|chord|string|key|high|middle|low)|说话人|选手|维生素)[ ]?\Z",
    re.IGNORECASE,
)
_ARTICLE = re.compile(  # after "A" or "I": a word, unless one that speaks of an option
    r"\s+(?!(?:or|and|because|since|as|is|was|but|not|for|rather|instead|over|fits?|match(?:es)?|works?|can|could|cannot|"
    r"would|has|does|doesn|isn|seems?|looks?|sounds?|makes|must|should|will|unlike|if|given|due|with|best|it|here)\b)[a-z]"
)
_BETWEEN = re.compile(r"[\s.):,、\]】」\"”*—–-]*(?:(?:the|an?|option|选项)\s+)?[\s(\[“\"「【]*", re.IGNORECASE)
_LIST_BETWEEN = re.compile(r"[\s,;、.)\]|/-]*(?:(?:and|or|和|或)\s*)?[(\[]?")
_PREFIX = re.compile(  # of an option that brings its own letter
    r"\s*(?:[(\[【]\s?([A-Za-z])\s?[)\]】]|([A-Za-z])(?:[)\].:、,]|\s+[-–—:]\s|\s+(?=\S)))\s*(?=\S)"
)


class Options:
    """Letters of a question and the texts they stand for.

    Attributes:
      letters: those that a reply may name.
      by_text: normalised text → letter.
      by_number: number → letter, of texts that are numbers in digits.
      pattern: finds an option's text in a normalised reply, the longest there is, in a group of its own.
    """

    def __init__(self, texts: Mapping[str, str]):
        self.letters = "".join(texts) or _WITHOUT_OPTIONS
        self.by_text = {normalise(text): letter for letter, text in texts.items()}
        if len(self.by_text) < len(texts):
            raise ValueError(f"choices: expected different texts, found {dict(texts)}")
        longest_first = sorted(((trim(text), letter) for letter, text in texts.items()), key=lambda pair: -len(pair[0]))
        ours = "|".join(f"({option_pattern(text)})" for text, _ in longest_first)
        self._groups = [letter for _, letter in longest_first]
        numbers = {letter: exactly(text) for text, letter in self.by_text.items()}
        self.by_number = {number: letter for letter, number in numbers.items() if number is not None}
        self.pattern = re.compile(ours or "(?!)", re.IGNORECASE | re.MULTILINE)

    def letter(self, match: re.Match[str]) -> str:
        """Of the option that `pattern` has found."""
        return self._groups[(match.lastindex or 0) - 1]


def is_right(reply: str, truth: Any, choices: Any = None) -> bool:
    """Does the reply state the true option? One that names two, or denies the one it named, does not.

    Args:
      truth: a letter, an option's text, both ("B. dog") or an index from 0.
      choices: the options, as texts in order or letter → text. Without them only letters up to H are read.

    Raises:
      ValueError: a truth that is none of the options, or could be two; options that are no texts or not different.
    """
    options = read_options(choices)
    return letter_stated(reply, options) == _true_letter(truth, options)


def letter_stated(reply: str, options: Options) -> str | None:
    """The letter of the option that a reply states; None where it states none, or several at once."""
    text = join_lines(flat(shorten(reply)).replace("*", ""))
    if whole := _whole(text, options):
        return next(iter(whole)) if len(whole) == 1 else None
    boxed, text = _boxed(text, options)
    mentions = _merged(text, sorted([*boxed, *_mentions(text, options)], key=lambda mention: mention.start))
    found = stated(text, _without_lists(text, mentions, options), among=options.by_text.values())
    return found if isinstance(found, str) else None


def read_options(choices: Any) -> Options:
    """Options as a record's column `choices` holds them. Raises ValueError for others."""
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


def _boxed(text: str, options: Options) -> tuple[list[Mention], str]:
    """What boxes state, and the text in which those that hold no usable answer are blank."""
    mentions = []
    for start, end, content in boxes(text):
        values = _whole(content, options)
        if not values:
            found = _merged(content, list(_mentions(content, options)))
            values = {stated(content, found)} if len(found) == 1 else {value for each in found for value in each.values}
        if values - {None}:
            mentions.append(Mention(start, end, frozenset(values - {None}), strength=Strength.ANSWERED))
        else:
            text = text[:start] + " " * (end - start) + text[end:]
    return mentions, text


def _whole(statement: str, options: Options) -> set[str]:
    """The options that a statement as a whole is the letter or the text of."""
    found = set()
    if "?" in statement:
        statement_is_question = normalise(statement) not in options.by_text
        if statement_is_question:
            return found
    if (match := _ALONE.fullmatch(statement)) and match.group(1).upper() in options.letters and "❌" not in statement:
        found.add(match.group(1).upper())
    if (letter := options.by_text.get(normalise(statement))) is not None:
        found.add(letter)
    return found


def _mentions(text: str, options: Options) -> Iterator[Mention]:
    """Of options outside boxes, in order: texts first, then letters that are no part of one."""
    spans = [(start, end) for start, end, _ in boxes(text)]
    found: dict[int, Mention] = {}
    for match in options.pattern.finditer(text):
        if not _inside(match.start(), spans):
            bounds = {"bound"} if re.match(r"\W?\d", match.group()) and is_bound(text, *match.span()) else set()
            found[match.start()] = Mention(*match.span(), frozenset({options.letter(match), *bounds}))
    if options.by_number:
        for mention in worded(text, list(found.values())):
            letters = {options.by_number.get(number) for number in mention.values}  # pyright: ignore[reportArgumentType]
            if None not in letters and not _inside(mention.start, spans):
                found[mention.start] = Mention(mention.start, mention.end, frozenset(letters), passing=False)
    taken = [(mention.start, mention.end) for mention in found.values() if mention.end - mention.start > 1]
    spans = sorted([*spans, *taken])
    for mention in _letters(text, options):
        if _inside(mention.start, spans) or _inside(mention.end - 1, spans):
            continue
        if (other := found.get(mention.start)) is not None and other.end == mention.end:
            mention = Mention(mention.start, mention.end, mention.values | other.values)
        found.setdefault(mention.start, mention)
        if found[mention.start].values < mention.values or mention.strength > found[mention.start].strength:
            found[mention.start] = mention
    last = 0
    for _, mention in sorted(found.items()):
        if mention.start >= last:
            yield mention
            last = mention.end


def _letters(text: str, options: Options) -> Iterator[Mention]:
    """Of what may be an option's letter; "A dog" and "I think" hold none."""
    for match in _PARENTHESISED.finditer(text):
        if match[1].upper() in options.letters:
            yield Mention(*match.span(), frozenset({match[1].upper()}), letter=True)
    for match in _OPENING.finditer(text):
        if match[1] in options.letters:
            yield Mention(*match.span(1), frozenset({match[1]}), letter=True, strength=Strength.SAID)
    for match in _BARE.finditer(text):
        article = match[1] in "AI" and _ARTICLE.match(text, match.end())
        if (
            match[1] in options.letters
            and not article
            and not _NAME_OF.search(text, max(0, match.start() - 12), match.start())
        ):
            yield Mention(*match.span(1), frozenset({match[1]}), letter=True, passing=False)
    for match in _SEVERAL.finditer(text):
        if set(match[1]) <= set(options.letters) and list(match[1]) == sorted(set(match[1])):
            yield Mention(*match.span(1), frozenset(match[1]), letter=True, passing=False)
    for match in _SMALL.finditer(text):
        article = match[1] in "ai" and _ARTICLE.match(text, match.end())
        if match[1].upper() in options.letters and match[1].islower() and not article:
            yield Mention(*match.span(1), frozenset({match[1].upper()}), letter=True, passing=False)


def _inside(at: int, spans: list[tuple[int, int]]) -> bool:
    return any(start <= at < end for start, end in spans)


def _merged(text: str, mentions: list[Mention]) -> list[Mention]:
    """A letter and a text beside each other as one: "B. cat", "cat (B)". Of different options they contradict."""
    merged: list[Mention] = []
    for mention in mentions:
        last = merged[-1] if merged else None
        if last is not None and last.letter != mention.letter and last.strength < Strength.ANSWERED > mention.strength:
            between = _BETWEEN.match(text, last.end)
            gap = text[last.end : mention.start]
            comma = "," in gap and not last.letter
            near = between is not None and between.end() >= mention.start and len(gap) < 16
            agree = last.values == mention.values
            goes_with = "\n" not in gap and (last.letter or "(" in text[last.end : mention.end])
            if near and not comma and gap.count("\n") < 2 and (agree or goes_with):
                strength = max(last.strength, mention.strength)
                merged[-1] = Mention(last.start, mention.end, last.values | mention.values, strength=strength)
                continue
        merged.append(mention)
    return merged


def _without_lists(text: str, mentions: list[Mention], options: Options) -> list[Mention]:
    """Without those of options that are but told again, one after another: "A. dog B. cat C. a bird"."""
    kept: list[Mention] = []
    run: list[Mention] = []
    for mention in [*mentions, None]:
        follows = (
            mention is not None
            and run
            and len(mention.values) == len(run[-1].values) == 1
            and str(*mention.values) > str(*run[-1].values)
            and mention.end - mention.start > 1 < run[-1].end - run[-1].start
            and (match := _LIST_BETWEEN.match(text, run[-1].end)) is not None
            and match.end() >= mention.start
        )
        if not follows:
            told_again = len(run) >= min(3, max(2, len(options.by_text)))
            kept += [] if told_again and not all(each.letter for each in run) else run
            run = []
        if mention is not None:
            run.append(mention)
    return kept


def _true_letter(truth: Any, options: Options) -> str:
    if isinstance(truth, Integral) and not isinstance(truth, bool):
        index = int(truth)
        found = set(options.letters[index : index + 1] if index >= 0 else "") | _whole(str(index), options)
    else:
        text = truth.decode() if isinstance(truth, bytes) else str(truth)
        found = _whole(flat(text), options)
        if not found and (match := _PREFIX.match(flat(text))):
            named = options.by_text.get(normalise(flat(text)[match.end() :]))
            found = {(match[1] or match[2]).upper()} & {named}
    if len(found) != 1:
        known = ", ".join(f"{letter}: {text}" for text, letter in options.by_text.items()) or options.letters
        raise ValueError(f"truth: expected one of the options ({known}), found {truth!r}")
    return next(iter(found))


@functools.lru_cache(maxsize=256)
def _read_options(pairs: tuple[tuple[str, str], ...]) -> Options:
    prefixes = [(_PREFIX.match(flat(text)), letter, flat(text)) for letter, text in pairs]
    if all(match and (match[1] or match[2]).upper() == letter for match, letter, _ in prefixes):
        stripped = tuple((letter, text[match.end() :]) for match, letter, text in prefixes if match)
        if len({normalise(text) for _, text in stripped}) == len(stripped):
            pairs = stripped
    return Options(dict(pairs))
