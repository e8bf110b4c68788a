"""What the patterns of denied.py, doubted.py and asserted.py are made of.

Each is for the words before or after a mention of an answer, in which every mention stands as HOLE. Patterns for what
goes before end with "$" and are searched for; those for what comes after are matched.
"""

from __future__ import annotations

import re

HOLE = "\ufffc"
"""Stands for a mention, one for each of its characters."""


def words(text: str) -> str:
    """A pattern of any of the words, which | sets apart; a space in one is any white space."""
    return r"\b(?:" + "|".join(word.replace(" ", r"\s+") for word in text.split("|")) + r")\b"


def pattern(*parts: str) -> re.Pattern[str]:
    """Any of the parts, in letters of either case."""
    return re.compile("|".join(parts), re.IGNORECASE)


ADVERBS = (
    r"(?:\s+|"
    + words(
        "also|clearly|definitely|obviously|certainly|simply|just|both|all|then|therefore|thus|quite|very|rather|"
        "probably|"
        "plainly|actually|still|now|here|the|an?|itself|out|too|so|indeed|completely|totally|most|safely|easily|"
        "immediately"
    )
    + r")*"
)
LINK = (
    r"^[\s)\]\"'”’」』】:,(…—–-]*(?:option|choice|answer|one|sound|选项|项|答案|这一?(?:个选)?项|这个(?:选项|"
    r"答案)?)?[)）]?\s*[:,—–(-]?\s*"
    r"(?:which|that)?\s*"
)
BE = (
    r"(?:(?:is|was|are|were|['’]s|seems?|looks?|sounds?|appears?|would(?:\s+have)?|will|being|has|have|could|can|"
    r"should|must|may|"
    r"might|gets?|feels?|(?:has|have)\s+been)(?:\s+(?:also|then|now))?(?:\s+be(?:en)?|\s+to\s+be)?)?\s*"
)
