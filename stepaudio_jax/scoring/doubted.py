"""The words that make a mention of an answer neither stated nor denied, or one of several, or corrected."""

from __future__ import annotations

from stepaudio_jax.scoring.patterns import pattern, words

QUESTION = pattern(
    r"^\W*(?:or\b(?!\s+(?:in\s+other|equivalently|simply|rather|just|more\s+(?:precisely|exactly)|so\s+to))|吗|呢|嘛|"
    r"かな?)|[?？]|[吗呢](?=\W|$)"
)
CONDITION = pattern(
    r"^\s*(?:had|were)\s+(?:it|she|he|they|i|we|there|the\s+\w+|this|that)\b|\bwhether\b[^,]*\Z|是否[^,]*\Z|(?<!而)是不是[^,]*\Z",
    r"(?:^|[\s,(])if\b(?!\s+(?:i|we|you)\s+(?:had|have|were|must|was|am)\b)(?!\s+(?:forced|pressed|anything))",
    r"如果(?![^,。]{0,4}要[猜选])|假如|假设|要是|倘若|若(?:是|为|选|有)|万一",
)
CONDITION_AFTER = pattern(
    r"^[\s,]*(?:only\s+)?(?:if|unless)\b(?!\s+(?:i|we|you)\s+(?:had|have|must|was|were)\b)|^[^,。.\n]{0,6}的话"
)
REASON = pattern(r"\b(?:because|since|given\s+that|seeing\s+that)\b|因为|由于|理由是")
CONTRAST = pattern(
    r"\b(?:but|however|instead|settled?|agree|finally|eventually|ends?\s+up|(?:changed?|moved?|switch(?:es|"
    r"ed)?)\b[^.]{0,20}\bto)\b(?!\s+(?:also|maybe|perhaps|possibly|not))",
    r"改(?:成|到|为)|后来|最后|最终|但(?!也|可能)",
)
REFUSAL = pattern(  # nothing mentioned in passing is an answer then
    r"\b(?:can\s*not|can['’]?t|could\s*n[o'’]t|unable\s+to|not\s+able\s+to)\s+(?:\w+\s+){0,2}?(?:determine[d]?|tell|"
    r"answer|say|process|access|count|solve|calculate|identify|know|make\s+out|listen)\b",
    r"\b(?:need|require|lack)s?\s+(?:more|additional|further|the)\s+(?:information|context|detail)|"
    r"\bnot\s+enough\s+(?:information|context|to\s+tell)|\binsufficient|\bdo\s*n[o'’]t\s+know|\bno\s+idea|\b(?:hard|"
    r"difficult|impossible)\s+to\s+(?:tell|say|know)|\bnot\s+(?:at\s+all\s+)?(?:sure|certain)\b",
    r"无法|不能(?:判断|确定|回答)|不确定|不知道|听不(?:清|出来)|很难(?:说|判断)|信息不足|没有足够|数不清",
)
ONCE = pattern(
    words("initial|initially|first|original|originally|previous|previously|earlier|at first|tempting|naive"),
    r"一开始|起初|最初|乍|原先|原来|本来",
)
CORRECTED = pattern(  # between two mentions: the second is what is meant
    words(
        "wait|actually|sorry|correction|corrected|on second thought|on reflection|in fact|i meant|i mean|hold on|"
        "scratch that|oops|my mistake|let me correct|after (?:re-?)?(?:listening|checking|thinking)(?: again)?|"
        "i take that back|rather"
    ),
    r"\bno(?=\s?[,.:!…—-])",
    r"更正|纠正|不对|等等|等一下|说错|其实|实际上|抱歉|应该是|应为|重新(?:听|数|算|想|考虑|判断)|再(?:听|想|"
    r"算)一?[遍次下]|后来",
)
_OR_WORDS = (
    r"(?:\s|选择?|maybe|perhaps|possibly|even|else|also|it['’]?s|it\s+is|is|option|the|an?\b|\(|\"|“|是|可能|约|大约|大概|"
    r"about|around)*"
)
OR = pattern(r"^[\s,;)\"”]*(?:\bor\b|and/or|/|或者?是?|还是|抑或|就是|,?便是)" + _OR_WORDS + "$")
AND = pattern(
    r"^[\s)\"”]*(?:、|&|\+|和|与|及|以及|跟|,?\s*\band\b|,\s*|\s+)\s*(?:(?:also|the|an?|option|choice)\b\s*|"
    r"[\"“]\s*)*$"
)
ALTERNATIVE = pattern(
    r"^[^.!?。\n]{0,8}?[,;]?\s*(?<!不)(?:要么|或(?:是|者)?|也(?:许|可能|有可能|像)|又|亦?可能)(?:是|有|就是)?\s*$",
    r"^有$",
    r"^[\s,;]*(?:(?:but|and|or|though|although)\s+)?(?:(?:it|this|that)\s+)?(?:could|might|may|can)\s+(?:(?:also|just|"
    r"as|well|equally|possibly|even|easily)\s+)*be\s+(?:the\s+|an?\s+|option\s+)*[(\"“]?$",
)
ALSO_POSSIBLE = pattern(
    r"^[\s)\"”]*(?:option\s+)?(?:is|are|would\s+be|could\s+be|may\s+be|might\s+be|seems?)\s+(?:also|equally|both|"
    r"just\s+as)\s+(?:\w+\s+)?(?:possible|plausible|likely|correct|right|fine|acceptable)",
    r"^[\s)”]*(?:项|选项)?(?:也|均|都)(?:是)?(?:有可能|可能|可以|行|对|正确|说得通)",
)
