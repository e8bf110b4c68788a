"""The words by which a reply commits itself to an answer, the strongest first."""

from __future__ import annotations

from stepaudio_jax.scoring.patterns import ADVERBS, BE, pattern, words

_FILL = (
    r"(?:\s|"
    + words(
        "it|it['’]s|it is|is|are|was|be|been|being|that|that['’]s|this|the|an?|option|choice|letter|answer|answers|"
        "would be|to be|only|just|about|around|approximately|roughly|nearly|exactly|clearly|definitely|certainly|"
        "most likely|likely|probably|perhaps|i['’]d|i|say|go with|going with|choose|pick|for|with|us|me|total of|"
        "equal to|equals|simply|sum|as|therefore|then|must be|has to be|have|has|there|there are|there is|you|they|we|"
        "get|correct|right|final|best|sound|called|actually"
    )
    + r"|[:=≈→\"“‘'(\[,$€£¥—–{}]|->|\b[a-z]\s?=|-(?=\s))*$"
)
_FILL_CJK = (
    r"(?:\s|是|为|应该?|就|选择?|项|选项|答案|只能|可能|大概|大约|约|差不多|等于|最|有|了|得|到|出|共|的|一?[个只]|即|"
    r"在|于|说话人|情绪|[:,=≈\"“‘「『【】(\[$¥…—-]|\.{3,}|は)*$"
)
ANSWER_BEFORE = pattern(  # what the reply itself calls its answer
    r"\b(?:option|choice|one|candidate|description|label|category|class|letter)s?\b[^.!?\n]{0,50}?\bis\b" + _FILL,
    r"\b(?:answers?|solution|conclusion|verdict|final|####|correct(?:\s+\w+)?|right\s+(?:one|option|choice)|"
    r"best\s+(?:option|choice|fit|match|guess))\b(?:[^.!?\n]{0,60}?(?:\b(?:is|are|be|was)\b|[:=]|->|→|\s[—–-]\s))?"
    + _FILL,
    r"####\s*\$?\s*$",
    r"(?:答案|正解|结论|最佳选项|正确(?:的)?选项|答|答え|정답|回答|判断|选择)(?:[^。.!?\n]{0,12}?(?:是|为|:|选|=))?"
    + _FILL_CJK,
    r"(?:答えは|正解は|정답은|답은)\s*$",
    r"(?<![可未误被])(?:选|应选|故选)(?!项)" + _FILL_CJK,
    r"[✓✔✅☑√]\s*[(\"“]?$",
)
CHOSEN_BEFORE = pattern(
    words(
        "choose|chose|choosing|chosen|pick|picking|picked|select|selected|selecting|selection|go(?:ing)? with|"
        "went with|go for|opt for|opting for|settle on|settle for|settled on|i mean|i meant|mean|meant|bet on|"
        "vote for|decide on|decided on|correction"
    )
    + _FILL,
)
STATED_BEFORE = pattern(
    words(
        "say|guess|conclude|think|believe|must be|has to be|have to be|can only be|leaves|leaving|left with|remains|"
        "remain|equals|equal|gives|makes|make it|totals|total|come to|comes to|amounts to|altogether|in all|so|"
        "therefore|hence|thus|actually|in fact|instead|result|sum|points? to|corresponds? to|corresponding to|"
        "match(?:es)?|aligns? with|maps? to|indicates?|suggests?|wait|sorry|no|thought|thinking|it would be|"
        "that would be|options?|choice|we get|you get|we obtain|arrive at"
    )
    + _FILL,
    r"(?:故|因此|所以|因而|综上(?:所述)?|结果|应为|应是|应该是|只能是|必然是|就是|得到?|可得|解得|等于|共计?有?|总共|"
    r"一共|合计|总计|还剩|剩下|只剩|更正|其实|实际上|实则|而是|才是|最终|最后|推断|属于|倾向于|后来发现|还有|总时间|"
    r"每人|选项)" + _FILL_CJK,
)
SAID_BEFORE = pattern(
    r"(?:\b(?:it|this|that|there|he|she|they|speaker|sound|instrument|i|we|you)\b\s*(?:['’](?:s|re)|is|are|was|were|"
    r"sounds?\s+like|hear|heard|count|counted|must\s+be|would\s+be|lasts?|sees?)\b)" + _FILL,
    r"\bbut\s+(?:rather\s+)?" + _FILL,
    r"[=≈]\s?[$€£¥]?$",
    r"(?:这|那|它|我|说话人|情绪|场景|语速|乐器)[^。.!?\n,;]{0,8}?(?:是|为|有|听到|觉得|属于|像)" + _FILL_CJK,
    r"(?:^|[。.!?\n,;:])\s*(?:我?(?:觉得|认为|感觉|猜)|很|大|极)?(?:可能|应该|应|似乎|好像|大概|估计|显然|明显|看来|"
    r"(?:看|听)(?:起来|上去))?(?:更)?(?:是|为|有|像)\s*(?:在|个|一[个只种段位])?\s*$",
)
STATED_AFTER = pattern(
    r"^[\s)\]\"”'’」】,:—–(-]*(?:(?:option|choice|answer)\s*)?[)\]]?\s*"
    + BE
    + ADVERBS
    + r"(?:correct\b|right\b|true\b|(?:my\s+|the\s+)*(?:\w+\s+)?(?:answer|one\s+I)\b|"
    r"(?:best|better|closest|only|right|(?:more|most)\s+\w+)\s+(?:answer|option|choice|fit|match|one|description|candidate)|"
    r"(?:more|most)\s+(?:likely|plausible|probable|suitable|appropriate|fitting|accurate)\b|best\b)",
    r"^[\s)\]\"”]*(?:it\s+is\b|it['’]s\b(?=\W*$)|fits\b|matches\b|works\b|remains\b|stands\b|is\s+what\b|is\s+it\b|"
    r"is\s+the\s+one\b)",
    r"^[^.\n,;?]{0,40}?[✓✔✅☑√]",
    r"^[\s)】」”\"]*(?:选项|项|这项|答案)?(?:的说法|的描述|说法|描述)?(?:是|才是|才|为|最|更|也?最|比较)*(?:正确|"
    r"对(?!比|应|话)|合适|符合|恰当|成立|正解|吻合|准确|が正|です)",
    r"^[\s)】」”\"]*(?:选项|项|这项|答案)?(?:是)?(?:最|更)(?:为|加|有)?(?:合理|可能|接近|贴切|可信|像|好|佳|优)",
    r"^[\s)】」”\"]*(?:选项|项)(?=\W|$)",
    r"^[\s)】」”\"]*(?:选项|项)?(?:才?是|为)(?:唯一|最佳|最好|最优|最终|我的|本题)?[^,。.;\n不错非]{0,8}(?:选项|答案|"
    r"选择|之选)",
)
STATED_AFTER_OF_ONE = pattern(
    r"^[\s)\]\"”'’]*(?:is|was|seems|sounds|fits|matches|would\s+be)\b(?!\s+(?:not|also|wrong|incorrect|out|ruled))",
    r"^[\s)】」”\"]*(?:选项|项)?(?:是|才是|才|为|最|更|也?更|比较)+(?:正确|对|合适|符合|恰当|接近|可能|准确|好)",
)
"""What is said of one alone: it is no member of the list before it."""
ONLY_BEFORE = pattern(
    r"(?:^|[^\w\s]\s*|\b(?:so|then|thus|therefore|that|hence)\s+)only\s+(?:option\s+|choice\s+)?[(\"“]?$",
    r"只有(?:选项)?$",
)
"""Before a letter of an option: the others are out of question."""
CONCLUSION_BEFORE = pattern(
    r"(?:故|因此|所以|因而|综上)[^,。.;!?\n]*$", words("so|therefore|thus|hence") + r"[^,.;!?\n]*$"
)
"""What begins the sentence in which the last mention of all stands."""
VERDICT_STATED = pattern(
    r"^[^\n]{0,60}?[,:;—–-]\s*(?:is\s+)?(?:正确|符合|对|correct|right|yes|true|matches|fits)[\s。.!)]*$"
)
_MAYBE = (
    r"(?:(?:very|most|quite|almost|so|ok(?:ay)?|well|yes|hmm+|sure|i\s+think|i\s+guess|i\s+believe|probably|likely|"
    r"certainly|maybe|perhaps|possibly|definitely|clearly|surely|obviously|simply|just|thus|therefore|hence|then|"
    r"it['’]s|嗯|哦|好的?|可能|应该|大概|肯定|显然|当然|估计|就是|那么?|也许)\s*)*"
)
ALONE_BEFORE = pattern(r"^[\s(\[\"“‘'「【<:,…—–.-]*" + _MAYBE + r"[\s(\[\"“‘'「【<:-]*$")
ALONE_AFTER = pattern(r"^[\s)\]\"”’'」】>]*(?:$|[.,;:!。—–\n(-])")
