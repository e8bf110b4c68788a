"""Where a reply holds an option's text, and not a part of a longer word or number, or a word of another meaning."""

from __future__ import annotations

import re

_FUNCTION_WORDS = {
    "是", "否", "有", "无", "对", "错", "不", "会", "能", "真", "假",
    "不是", "没有", "不会", "不能", "正确", "错误", "不对", "可以",
}  # fmt: skip
_AS_ANSWER = {  # before and after words that are an answer in some places only: not "no noise", "the one that fits"
    "no": ("", r"(?=\s*(?:$|[.,;:!?()\[\]\"“”'’/—–]|-\s)|\s+(?:because|since|as|for|is|was|and|or|but|not|rather)\b)"),
    "one": (
        r"(?<!\bthe\s)(?<!\bthis\s)(?<!\bthat\s)(?<!\bwhich\s)(?<!\beach\s)(?<!\bno\s)(?<!\bonly\s)",
        r"(?!\s+(?:that|which|who|of|with|can|could|would|might|may|i|option|more|thing)\b)",
    ),
}
_BEFORE_FUNCTION_WORD = (
    r"(?:(?<=^)|(?<=[\s,:;.!?。、\"“'‘「(\[—-])|(?<=答案是)|(?<=答案为)|(?<=应该是)|"
    r"(?<=[选为话法述论断题句]是)|(?<=[选为]))"
)
_AFTER_FUNCTION_WORD = r"(?=$|[\s,:;.!?。、\"”'’」)\]]|的)"
_CHINESE_DIGITS = "零〇一二两三四五六七八九十百千万亿点"


def option_pattern(text: str) -> str:
    """A pattern of an option's text: not inside a longer word, nor, where it is a number, inside a longer one."""
    if text in _FUNCTION_WORDS:
        return _BEFORE_FUNCTION_WORD + re.escape(text) + _AFTER_FUNCTION_WORD
    body = r"\s+".join(map(re.escape, text.split()))
    if text.lower() in _AS_ANSWER:
        wanted_before, wanted_after = _AS_ANSWER[text.lower()]
        body = wanted_before + body + wanted_after
    body = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", ",?", body)
    before, after = "", ""
    if text[0].isascii() and text[0].isalnum():
        before = r"(?<![A-Za-z0-9])(?<!\bnon-)"
    if re.match(r"[-+$€£¥]?[\d.]", text):
        before = (
            r"(?<![A-Za-z0-9^\\~])(?<!\d[.,:/])(?<![^.]\.)(?<!^\.)(?<![\d)]\s[-–×*/])"
            r"(?<![-+–])(?<!\\frac\{)(?<!第)(?<!\d\s[-–~/:]\s)"
        )
        if re.match(r"\d{3}(?!\d)|\d+/\d", text):
            before += r"(?<!\d\s)"
    elif text[0] in _CHINESE_DIGITS:
        before = f"(?<![{_CHINESE_DIGITS}第])"
    if text[-1].isascii() and text[-1].isalnum():
        after = r"(?![A-Za-z0-9])"
    if text[-1].isdigit():
        after = (
            r"(?![A-Za-z0-9]|[.,:]\d|\s?[/^%]|\s?[-–~]\s?\d|\s?(?:percent|million|billion|thousand|hundred|to\s+\d)|\s\d{3}(?!\d)"
            r"|[万亿千百]|\s?\d/\d)"
        )
    elif text[-1] in _CHINESE_DIGITS:
        after = f"(?![{_CHINESE_DIGITS}])"
    return before + body + after
