"""The words by which a reply denies an answer or takes it back, in English, Chinese and some Japanese."""

from __future__ import annotations

from stepaudio_jax.scoring.patterns import ADVERBS, BE, LINK, pattern, words

AFFIRMING = pattern(  # they hold a word of denial, and deny nothing
    r"\b(?:without\s+(?:a\s+|any\s+)?|no\s+|little\s+|beyond\s+(?:a\s+|any\s+)?)(?:doubt|question)\b(?:\s+(?:that|"
    r"about\s+it))?",
    r"\bno\s+(?:other|one\s+else)\b|\bundoubtedly\b|\bunmistakabl[ey]\b|\bnot\s+(?:only|just|merely)\b|\bno\s+wonder\b",
    r"\b(?:nothing|none|no\s+\w+|not?\s+any\w*|n['’]t\s+(?:be\s+)?any\w*|cannot\s+be\s+any\w*)(?:\s+(?:fits|works|"
    r"matches))?\s+(?:but|except(?:\s+for)?|other\s+than|besides)\b",
    r"毫无疑问|毫无疑义|无疑|没有疑问|不用说|毫不犹豫|无非|不外乎|不得不|不能不|不可能不|没错|不难|不仅|不只|不愧",
    r"(?<=[性类级分识区特个鉴判])别",
)
_FILL_DENIAL = (
    r"(?:\s|"
    + words(
        "the|an?|any|option|options|choice|choices|answer|answers|letter|be|is|was|are|were|to|think|believe|say|that|"
        "it|its|it['’]s|really|actually|necessarily|quite|at all|sounds?|like|seems?|seem to be|looks?|choose|pick|"
        "select|go|going|with|for|hear|heard|detect|have|has|been|correct|right|of|in|likely|possibly|even|this|there|"
        "want|would|recommend|see|consider|accept|agree|suggest|as|playing|exactly|ever|from|one|i|we|i['’]d|sure|"
        "possible|possibility|contain|contains|include|involve|feature|only|supposed|meant|equal|equals|both|either|"
        "worth|enough|present|audible|also|so|too|very|more|chosen|picked|said|meaning|case|number|value|letters|"
        "final|on|by|using|used|into|about|kind|type|single|lone|playing|being|plain|simply|all|way|chance|reason|"
        "evidence|sign|trace|hint|indication|need|point|justify|support|call|describe|label|classify"
    )
    + r"|[\"“‘(\[$])*$"
)
_DENIAL = (
    r"(?:"
    + words(
        "not|never|no|none of|neither|nor|cannot|without|except|except for|excepting|excluding|unlike|against|"
        "other than|rather than|less than|more than|different than|instead of|apart from|aside from|as opposed to|"
        "opposed to|far from|opposite of|different from|differs? from|contrary to|any but|any \\w+ but|every \\w+ but|"
        "all \\w+ but|anything but|anyone but|all but|everything but|every option but|rules? out|ruled out|ruling out|"
        "eliminate[sd]?|eliminating|excludes?|excluded|excluding|rejects?|rejected|rejecting|discard|discards|"
        "discarded|dismiss|dismissed|doubt|doubts|doubtful|wrong to|mistaken to|mistake to|those who|anyone who|"
        "whoever|impossible|unlikely|non|isnt|dont|cant|nothing like"
    )
    + r"|n['’]t\b|\bnon-)"
)
_FILL_DENIAL_CJK = (
    r"(?:\s|提到|提及|说到|说过|讲到|谈到|涉及|等于|可能|会|能|应该?|该|要|太|怎么|是|很|算|像|属于|存在|有|听到|听见|"
    r"听出|听得?出|出现|听起来|认为|觉得|选择?|答案|选项|正确|的|为|在|只|仅|单纯|发出|真正|任何|"
    r"一?[个只条种位把声次]|任何|明显|到|见|以|当作|再|包含?|含|用到?|使用|什么|说|那么|特别|十分|非常|感到|表现出?|"
    r"显得|[\"“「『(【])*$"
)
_DENIAL_CJK = (
    r"(?:不(?:再|应该?|该|能|可能?|会|要|是|选|像|属于|认为|觉得|符合|存在|算|用)?|没有?|并?非|绝非|而非|未|无(?=$|"
    r"法)|别|莫|勿|切忌|排除(?:了|掉)?|除(?:了|去|开|掉)|除$|误(?:选|认为|以为|判)|否定了?|反对|有别于|不同于|区别于|"
    r"与其(?:说)?(?:是)?|选错|拒绝|否决|放弃|剔除|淘汰|去掉|划掉|忽略|(?:很|较)?难以?(?:说|认为|相信|断定|确定|判断)|"
    r"(?:错误?|不正确|不对|不符合?|不成立|有误|不恰当|不可能)(?:的)?(?:答案|选项|说法|一项)?(?:是|为|:|：)?)"
)
DENIED_BEFORE = pattern(
    _DENIAL + _FILL_DENIAL,
    r"\b(?:wrong|incorrect|false|mistaken|bad)\s+(?:answers?|options?|choices?|ones?|guess)(?:\s+(?:is|are|"
    r"would\s+be))?\s*[:=-]?\s*(?:option\s*)?[(\"“]?$",
    r"(?:^|[.!?\n;]\s*)(?:wrong|incorrect|false|not|rejected|eliminated)\s*[:—–-]\s*[(\"“]?$",
    r"[❌✗✘✖❎]\s*[(\"“]?$",
    r"\bbut\s+not,\s*$",
    _DENIAL_CJK + _FILL_DENIAL_CJK,
    r"(?:^|[。.\n;]\s*)(?:错误?|不正确|不对|排除)\s*[:：]\s*$",
)
_BAD = (
    r"(?:wrong|incorrect|false|mistaken|impossible|invalid|ruled\s+out|eliminated|excluded|rejected|discarded|"
    r"dismissed|distractors?|traps?|mistake|inaccurate|untrue|out\b|not\s+(?:the\s+|a\s+|really\s+|"
    r"quite\s+)*(?:correct|right|answer|possible|it\b|true|option|choice|valid|viable|solution|one\b|sound|what|"
    r"present|heard|there|audible|case)|n['’]t\s+(?:the\s+|a\s+|really\s+|quite\s+|be\s+)*(?:correct|right|answer|"
    r"possible|it\b|true|one\b|be\b)|too\s+\w+|not\s+enough|(?:the\s+)?(?:least|worst)\s+\w+|incompatible|"
    r"inconsistent|unlikely|improbable|implausible|nowhere|absent)"
)
DENIED_AFTER = pattern(  # whatever was mentioned
    LINK + BE + ADVERBS + _BAD,
    LINK
    + r"(?:cannot|can['’]?t|could\s*n['’]t|could\s+not)\s+(?:be|possibly)\b(?!\s+(?:missed|mistaken|ruled|excluded|"
    r"denied))",
    LINK + r"(?:(?:does|do|did|would|could|can)\s*(?:not|n['’]t)|can['’]?t|cannot|doesnt|never|"
    r"fails?\s+to)\s+(?:really\s+|quite\s+|at\s+all\s+)*(?:fit|match|work|apply|make\s+(?:any\s+)?sense|hold|seem|"
    r"sound|occur|appear|exist|belong|count|explain|correspond)",
    r"^[\s)\]】:：]*×|^[^.\n,;?✓✔✅☑√]{0,40}?[❌✗✘✖❎]",
    LINK
    + r"(?:也|都|均|则|就|并|肯定|显然|明显|必然|一定|绝对|完全|其实|实际上|是|被|可以?|应该?|应当|能|予以|的|说法|"
    r"描述|这个|叫声|声音?)*(?:不(?:对|正确|符合?|成立|可能|合适|恰当|选|能选|合理|行|可取|是|属于)|并非|错(?!过)|"
    r"有误|误(?!导)|排除|无关|干扰项|矛盾|相悖|与[^,。.;\n]{0,8}不符|(?:并?不|没有?)(?:存在|出现|听到)|听不到|×|✗|❌)",
    r"^(?:以外|之外|除外)",
    r"^[\s)\]]*(?:ではない|ではありません|じゃない|は違|は間違)",
)
DENIED_AFTER_LETTER = pattern(  # of an option's letter, for which a verb is no part of the answer
    LINK + BE + ADVERBS + r"(?:no\b(?!\s+(?:doubt|question))|not\b|n['’]t\b|nope\b)",
    LINK + r"(?:isn['’]?t|aren['’]?t|wasn['’]?t|cannot|can['’]?t|couldn['’]?t|won['’]?t|wouldn['’]?t|doesn['’]?t|"
    r"does\s+not|do\s+not|don['’]?t|did\s+not|didn['’]?t|fails?|lacks?|contradicts?|makes?\s+no|has\s+no|had\s+no|"
    r"conflicts?|never)\b",
    LINK + r"(?:也|都|均|则|就|肯定|显然|是|的|因为)*(?:不|没|无|未|非(?!常)|缺|太|偏|否)",
)
DENIED_AFTER_TEXT = pattern(
    LINK + r"(?:is|are|was|were)(?:\s+\w+ly)?\s*(?:not\b|n['’]t\b|no\b(?!\s+(?:doubt|question)))"
)
VERDICT_DENIED = pattern(  # at the end of an option's own line
    r"^[^\n]{0,60}?[,:;—–-]\s*(?:is\s+)?(?:错误?|不符合?|不对|不正确|排除|incorrect|wrong|no|false|"
    r"does\s*n[o'’]t\s+(?:match|fit))[\s。.!)]*$"
)
ONLY_EXCEPTION_BEFORE = pattern(
    r"除了?$",
    r"\b(?:every\w*|all|any|options?|others?)\b.{0,20}\b(?:but|except(?:\s+for)?)\s*(?:the\s+)?(?:option\s+)?$",
)
ONLY_EXCEPTION_AFTER = pattern(
    r"^[^,。.;\n]{0,4}[,，]?\s*(?:其[他它余]|别的|剩下|另外)[^。;\n]{0,8}(?:不|错|排除|没)",
    r"^\s*(?:is|are|can\s+be|was|were)\s+(?:wrong|incorrect|ruled\s+out|eliminated|false|impossible|out)",
)
IS_NO_OTHER_BEFORE, IS_NO_OTHER_AFTER = pattern(r"非$"), pattern(r"^(?:莫属|不可)")
_THAT = (
    r"(?:(?:(?<![A-Za-z]\s)(?<![A-Za-z])|(?<=\bbut )|(?<=\bwait )|(?<=\bactually )|(?<=\bhowever )|(?<=\bno ))(?:that|"
    r"this|it|the\s+(?:above|previous|first)\s+(?:answer|one)|my\s+(?:first\s+|previous\s+|initial\s+)?(?:answer|"
    r"choice|guess))|(?<=\s)(?-i:That|This|It))"
)
TAKEN_BACK = pattern(  # of what was said before
    _THAT + r"\s*(?:is|was|['’]s|must\s+be|would\s+be|seems?)\s+(?:also\s+|clearly\s+|actually\s+)?(?:wrong|incorrect|"
    r"mistaken|false|a\s+mistake|an\s+error|not\s+(?:right|correct|it\b|true|the\s+(?:right\s+|correct\s+)?answer))",
    _THAT + r"\s*(?:isn['’]t|wasn['’]t|can['’]?t\s+be|cannot\s+be)\s+(?:right|correct|it\b|true|the\s+(?:right\s+|"
    r"correct\s+)?answer)",
    r"(?:这(?:是|个答案|个选项|样)?|那(?:是)?|上述[^,。.;\n]{0,4}|上面[^,。.;\n]{0,4}|以上[^,。.;\n]{0,4}|"
    r"前面[^,。.;\n]{0,4}|刚才[^,。.;\n]{0,4}|之前[^,。.;\n]{0,4})(?:都|均)?(?:是)?(?:不对|错(?!过)|不正确|有误|"
    r"不是(?:正确)?答案)",
)
TAKEN_BACK_ALONE = pattern(  # at a sentence's beginning
    r"^\W*(?:等等|等一下|嗯|哦|抱歉|但|但是|不过|其实)*\W*(?:不对|错了|不正确|说错了|答错了|算错了|更正)(?=\W|$)",
)
