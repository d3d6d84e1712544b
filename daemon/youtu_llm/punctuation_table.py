"""What the punctuation repair (postprocess.py) knows of Chinese: a table of words and patterns.

A word list says which words a rule looks for; a pattern says what a line, a segment (between
spaces) or a clause (between marks) looks like.
"""

from __future__ import annotations

import re

from youtu_llm.spans import (
    CLOSING,
    GAP_CHARS,
    HAN,
    OPENING,
    PAUSES,
    SPACES,
    SPAN_OPENERS,
    Pattern,
)

HALF_TO_FULL = {",": "，", ";": "；", ":": "：", "!": "！", "?": "？"}
FULL_MARKS = frozenset("，、；：！？")
SHARED_WITH_LATIN = "…—“”‘’"  # full-width only beside Chinese
NUM = "一二三四五六七八九十百千零〇两\\d"

# Words that a rule looks for.
SENTENCE_WORD = re.compile(  # what a clause has, and a name, a title or a word of a list has not
    "[我你您他她它咱是了吗嗎吧呢很不没沒请請把被让讓就都也又还還再将將已]"
    "|(?<![智功性才技节热动电机职])能(?![量力源])|(?<![社开议宴协工机委大])[会會](?![议議员員])"
    "|因为|所以|但|组成|等于|约为|位于|属于|叫做|称为|变成|绕.+转|如果|虽然|需要|可以|应该|使得|这|那|在.+[上下里中内]"
)
SIGNED = re.compile("[你您]的..$")  # of a letter: its name follows
CONNECTIVE = re.compile(
    "因此|所以|但是|然而|不过|同时|另外|此外|其中|后来|当时|于是|例如|比如|而且"
)
TOLD = re.compile("[我你您他她它了]")  # hardly a word of a list or a line of verse
ENGLISH_WORD = re.compile(
    r"(?<![^ \"'(“‘])(?:[Tt]he|an?|is|are|was|were|am|of|to|and|in|[Ii]t|[Tt]his|[Tt]hat|I|[Ww]e"
    r"|[Yy]ou|[Hh]e|[Ss]he|[Tt]hey|my|your|means?|called|for|with|not|[Hh]ow|[Ww]hat|like)(?=[ '])"
)
LATIN_WORD = re.compile(
    rf"(?<![^ \"'(“‘])[A-Za-zÀ-ɏ][A-Za-zÀ-ɏ'’-]*(?![^ ,.;:!?\"')”’（{HAN}])(?!\.\w)"
)
LATIN = re.compile("[A-Za-z]")
LATIN_HAN = re.compile(rf"[A-Za-z]+[ -]+[{HAN}]{{1,4}}$")
IN_FOREIGN_NAMES = frozenset(
    "阿埃艾爱安奥巴芭柏拜班邦保贝本比彼毕波伯勃博布查达戴丹当道德迪蒂丁顿多恩尔凡菲费芬夫弗佛福盖"
    "甘冈戈哥格古哈海汉翰赫亨华怀惠霍基吉加贾简杰金居卡凯康考科柯克肯库奎拉莱兰朗劳勒雷莉里利丽林"
    "卢鲁路伦罗洛马玛迈曼梅门蒙米密摩莫姆穆拿纳娜内尼牛纽努诺欧帕培佩皮蒲普奇乔琼丘让仁日荣儒瑞若"
    "萨塞桑沙莎舍史士司丝斯苏索塔泰坦汤唐特廷托瓦万威韦维温文沃乌西希夏辛雪雅亚扬耶伊英尤雨约泽詹芝"
    "治兹祖佐廉隆仑逊罕歇迦朱"
)

# Rule 5: questions.
ASKS = re.compile("(?:[吗嗎]|(?<![什甚怎那这這多要])[么麼])$")
QUESTION_WORD = re.compile(
    "[谁誰哪几幾何啥怎]|[什甚][么麼]|多[少大长高远重久深宽]|为何|[你您][^，]*还是(?![要会能不没得想])|([^\\W\\d])不\\1"
)
NO_QUESTION = re.compile(  # a question word that asks nothing
    "[十好没無无]几|几[乎何]|任何|几何|何况|无论|無論|不管|不论|哪怕|没什么|不[怎什]么|这[就也正]?是为什么|多少有"
    "|(?:什么|谁|哪里|哪儿|怎么).*[就都也].*|要多.*有多"
)
EMBEDS = re.compile(  # a verb that takes the question as its object
    "知道|告诉|取决于|研究|讨论|探究|介绍|解释|说明|描述|写出|指出|说出|决定|明白|了解|清楚|思考"
    "|关注|关于|^求|分析"
)
MAY_EMBED = re.compile("问(?!题)|算|想|猜|看|判断|比较|估计|求|确定|记得|学习|学会|发现")
SURE_QUESTION = re.compile(
    "怎么样|怎样|怎么办|怎么[走去做办说写读用]|如何[^，]{0,6}$|是什么|什么[^，的]{0,3}$|是谁|^谁|为什么"
    "|哪里|哪儿|哪[个些位种天年一][^，]{0,8}$|几点|几分之几|百分之几|多少|多[大长高远重久深宽]$|呢$"
    "|[^\\W\\d好十没第]几[^，]{0,4}$|^几[^，]{1,4}$|第几|([^\\W\\d])不\\1|有没有|[你您][^，]*还是|几[^，]{0,3}$"
)
HOW_TO = re.compile("怎样|如何|怎么(?![啦了样])")  # a title, or a question
POLITE = re.compile("[你您][们們]?(?:能|可以|会|會|愿意|知道)[^，]*[吗嗎]$")

# What a line or a segment looks like.
NUMBERED = (
    f"第[{NUM}]{{1,6}}(?:单元|單元|课时|部分|[大小]题|环节|阶段|板块"
    "|[步章节節篇部卷回编编条條讲講课課题題])"
)
HEADING_LABEL = re.compile(
    rf"[*【]*(?:(?:{NUMBERED})+|(?:[图圖表] ?|[\w]{{1,3}}(?<![{NUM}_a-z]))[{NUM}][{NUM}.-]{{0,6}})"
    "[*】]*"
)
HEADING = re.compile(f"(?:{HEADING_LABEL.pattern})(?=[{SPACES}]|$)|[*【]*(?:{NUMBERED})+[：:]")
LIST_MARKER = re.compile(
    r"[-*+] |\d{1,4}[.)、．](?!\d)|[A-Za-z][.)、．]|[一二三四五六七八九十]{1,3}[.、．]"
    r"|[(（](?:\d{1,4}|[A-Za-z]|[一二三四五六七八九十]{1,3})[)）]|[①-⑳•·□☐]"
)
LABEL_VALUE = re.compile(f"[*【]*[^{PAUSES}:（(]{{1,8}}[：:]")
SAYS_SO = re.compile(f"[，。！？…]|{SENTENCE_WORD.pattern}")
ANSWER = re.compile("[*【]*(?:[答解注证]|注意|提示|结论|原因|说明|总结|证明)[*】]*[：:]")
CODE_LINE = re.compile(
    r"""(?:printf|print|puts|console\.log|System\.out\.\w+|f?puts|alert|input)\(
    |(?:SELECT|INSERT\ INTO|UPDATE|DELETE\ FROM|CREATE|ALTER|DROP|FROM|WHERE|VALUES|ORDER\ BY
       |GROUP\ BY|JOIN|LEFT\ JOIN|SET)\ |select\ [^，。]{1,12},\ $
    |(?:const|let|var|int|char|float|double|bool|auto|string|String|def|class|function|public
       |private|static|void)\ .*[=({]
    |(?:return|echo|import|case|throw|raise|cout|cin|yield|assert)\ ?["'(\w<>]
    |(?:if|elif|while|for|switch|with|else\ if)\ ?.*(?:[=<>!]=|[<>]|\ in\ |\().*[):{]
    |[\w.:<>]+(?:\[[^\]]*\])?(?:\ \w+)?\ ?[-+*]?=\ ?["'\[{]
    |[a-z][\w.-]*(?:\ [\w./]+)*\ --?[a-z]
    |.*\ //\ |[A-Z]{2,5}\ [A-Z]{1,2}\d*,\ ?[#@A-Z\d]|\d{4}[-/]\d\d?[-/]\d\d?,$
    |[A-Za-z_][\w.]*\(["']
    |//|/\*|"{3}|.*=.*\ \#\ |class\ \w+:|\w*(?:Error|Exception|Warning):[ ]
    |\[\d+\]\ ?[一-鿿]{2,4}(?:\.|,\ )|\#include|--\ |@\w+|\$\ |>>>""",
    re.VERBOSE,
)
CSV_HEAD = re.compile(
    r"(?:\w{1,8},)*(?:序号|编号|学号|工号|姓名|名称|日期|时间|年份|月份|城市|地区|省份|国家|班级|学校|部门|科目"
    "|课程|产品|商品|品名|设备|型号|类别|项目|书名|标题)$"
)
CSV_ROW = re.compile(rf"(?![今昨明现其首最如结所后当另第于因但那这一共])[{HAN}]{{2,3}}$")
ENGLISH_QUOTE = re.compile(r'"[^"]*"[,.]? ?[A-Za-z]')
DATE = f"[{NUM}年月日号號周週星期礼拜禮天上下中午晚早时時分点點秒公元农历農曆 :：.-]"
DATE_LINE = re.compile(f"{DATE}+$")
DATE_END = re.compile(f"[{NUM}][日号號]$|星期.$")
DATE_AHEAD = re.compile("星期|周|週|礼拜|禮拜|[上下]午|晚上|早上|中午|凌晨")
VERB = re.compile(
    "(?<!关)于|[是了吧请把被让都很也有为将已曾没不便则以]|成为|得到|表示|推动|出现|带来|完成|叫做"
)
LONG_LINE = 12  # Han: most titles are shorter
TITLE_END = re.compile(
    "(?:方法|意义|性质|原理|过程|作用|影响|特点|研究|分析|设计|教案|方案|报告|总结|计划|通知|试卷|试题"
    "|结构|关系|应用|思想|目标|标准|答案|规则|制度|手册|指南|说明|概述|简介|须知|大全|教程|上册|下册|目录"
    f"|定义|概念|公式|定理|步骤|现状|对策|问题|发展|建设|思考|探讨|实践|培养|[题卷集记传史篇歌图书赋序论]|\\d[号室楼层])$|的[{HAN}]{{1,4}}$"
)
REMARK = re.compile(r"[(（【《〈\[“「].*[)）】》〉\]”」]")
ENDED = re.compile(
    f"[。！？…][{CLOSING}]*(?:[（(][^（(]*[）)])?$|[（(][{SPACES}]*[）)]$|[….]{{2,}} *\\d+$"
)
ENDS_IN_VALUE = re.compile(  # a digit, a unit, a formula, a word that touches Han: no URL, no path
    r"(?:[^!-~]|[=≈<>≥≤+×÷*/$^ (])"
    r"(?:\d[\d,.]*|[A-Za-z]\w*\d|\d[\d.]* ?[A-Za-zμΩ]{1,4}(?:/[a-z]+)?)[²³]?$"
    rf"|[{HAN}，：、（“][A-Za-z][A-Za-z0-9]*$|\d[\d.]*(?:[%‰°℃℉²³]|[A-Za-z]+[²³])$|(?<=[^\s$])\$$"
    r"|\\[)\]]$"
)
PLAIN_WORD = re.compile(r"[^!-~](?:[A-Za-z0-9]+|\d[\d,.]*\d)$|[^!-~] [A-Za-z0-9]+$")
ABBREVIATION = re.compile(r"(?:\b(?:vs|No|Vol|Dr|Mr|Mrs|Ms|Fig|etc|pp?|e\.g|i\.e)|\b[A-Z])$")
ENTITY = re.compile(r"&[A-Za-z#0-9]{1,8}$")
AFTER_WORD = re.compile(r"[^\W_]|[%‰°℃℉′″√×)\]>$`*_'’\"☀-➿\U0001f000-\U0001faff\ufe0f]")
FULL_WIDTH_FORM = re.compile("[０-９Ａ-Ｚａ-ｚ]")
TWO_LETTERS = re.compile("[A-Za-z]{2}$")
SMILE = re.compile(r"[:;]-?(?:\)|\((?!\w)|[DPp](?![A-Za-z0-9]))")
CLAUSE_END = re.compile(f"[{SPACES}{PAUSES.replace('、', '')}]")
SENTENCE_END = re.compile(f"[。！？][{CLOSING}]?|(?<!\\b[A-Za-z])[.!?](?= [A-Z{HAN}])")
NEXT_SEGMENT = re.compile(f"[^{re.escape(GAP_CHARS)}{SPAN_OPENERS}\n]{{1,6}}")
WIDE_AFTER_BRACKET = re.compile(f"）(?:\u3000|[{SPACES}]{{2,}})")
STRONG_MARK = re.compile("[，；。！？…]")
FEW_SPACES = re.compile(f"[{SPACES}]{{0,8}}")
LEADER = re.compile(r"…{3,}|\.{4,}")
MARK_RUN = re.compile(r'["“”()（）]|(.)\1*')
CALL = "f("  # an open bracket of a call: what is inside is code

REPEATS = (  # rule 3, in this order
    (re.compile("…*(?:(?:。{3,}|…{2,})…*)+"), "……"),
    (re.compile("[，、；]+(?=[。！？])"), ""),
    (re.compile(r"([，、；：。])\1+"), r"\1"),
    (re.compile("([！？])。+"), r"\1"),
    (re.compile("([！？]{3})[！？]+"), r"\1"),
)
HAS_BLANK = re.compile(f"[（(][{SPACES}]*[）)]|[{SPACES}]{{2,}}|\u3000$|__|＿")
EMPTY_BRACKET = re.compile(f"[（(][{SPACES}]*[）)]")
BLANK = f"(?P<blank>(?<=[：:（(])(?:[{SPACES}]{{2,}}|\u3000))"  # of a form or an exercise


def _spaces_beside(marks: str) -> Pattern:
    return re.compile(f"{BLANK}|(?<=[{marks}])[{SPACES}]+|[{SPACES}]+(?=[{marks}])")


FULL_WIDTH = "".join(sorted(set(PAUSES + OPENING + CLOSING) - set(SHARED_WITH_LATIN)))
BESIDE_FULL_WIDTH = _spaces_beside(FULL_WIDTH)
BESIDE_FULL_WIDTH_IN_CHINESE = _spaces_beside(FULL_WIDTH + SHARED_WITH_LATIN)
