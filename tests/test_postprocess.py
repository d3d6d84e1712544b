"""The punctuation repair: the specification's cases, invariants and corpus figures."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lab.evals import punctuation
from youtu_llm.postprocess import PunctuationStream, punctuate_postprocess

DATA = Path(__file__).parent / "data"
CASES = [
    json.loads(line)
    for line in (DATA / "punctuation_cases.jsonl").read_text(encoding="utf-8").splitlines()
]

HAN = "今天天气很好我们去公园玩吗么什呢第一章图表张星期日月"
MARKS = ",;:!?.，；：！？。、…—-\"'“”‘’()（）《》【】「」"
SYNTAX = "`~$\\<>{}[]|#*+/=@_%"
texts = st.text(
    st.sampled_from(HAN + MARKS + SYNTAX + "  　\t\n" + "abPython019" + "のカ한😀é"), max_size=60
)
soups = st.lists(st.sampled_from(punctuation.TOKENS), max_size=20).map("".join)
any_text = texts | soups | st.text(max_size=30)
reasons = st.sampled_from(["stop", "length", "abort"])
clauses = st.sampled_from(
    ["今天天气很好", "我们去公园玩,然后回家.", "他说:“好 ,", "你吃饭了吗 我已经吃过了", "是"]
)


@pytest.mark.parametrize("case", CASES, ids=[f"{c['group']}-{c['input'][:12]!r}" for c in CASES])
def test_a_case_of_the_specification_whole_and_under_200_cuttings(case: dict[str, str]) -> None:
    text, expected, reason = case["input"], case["expected"], case["finish_reason"]
    assert punctuate_postprocess(text, finish_reason=reason) == expected
    rng = random.Random(text)
    for _ in range(200):
        pieces = punctuation.cut(text, rng, longest=rng.choice((1, 3, 8)))
        assert punctuation.stream(pieces, reason) == expected, pieces


# Invariant 1.
@given(any_text, reasons)
def test_content_is_never_changed(text: str, reason: str) -> None:
    repaired = punctuate_postprocess(text, finish_reason=reason)
    assert punctuation.content(repaired) == punctuation.content(text)


PROTECTED = [
    "```python\nx = {'a': '你好,世界'}\nprint('今天天气 很好很好.')\n```",
    "~~~\n今天天气很好 我们去公园,玩\n~~~",
    "`今天天气很好 我们去公园,玩`",
    "``今天`天气 很好很好,``",
    "$速度 x=1, 路程,长$",
    "$$\n今天天气很好 我们,y\n$$",
    r"\(今天天气很好 我们去,b\)",
    "\\[\n今天天气很好 我们去,b\n\\]",
    '<img alt="今天天气很好 我们去,玩" src="a,b">',
    "<think>\n好的, 用户想要 今天天气很好 我们去\n\n。。</think>",
    '<tool_call>{"name": "查 天气预报查询服务,b"}</tool_call>',
    '{"城市": ["北京, 海淀区今天 天气很好", {"说明": "好\\",好"}]}',
    "https://example.com/a,b;c?x=1&y=2!z",
    "zhang.san@example.com",
    "/etc/llm/profile.yaml",
    "3.14",
    "1,000",
    "08:05:30",
    "16:9",
    "v1.2.3",
    "192.168.1.1",
    "2026-11-22",
    ":)",
]
PROTECTED_LINES = [
    "| 今天天气很好 我们去公园 | 3.5,好 |",
    "# 今天天气很好 我们去,公园玩",
    "第一章 今天天气很好我们去公园玩",
    '"城市": "今天天气很好 我们去公园,玩",',
]
LIST_MARKERS = [
    "- ",
    "* ",
    "+ ",
    "1. ",
    "1.",
    "2) ",
    "3、 ",
    "（1） ",
    "(1)",
    "一. ",
    "一、",
    "a. ",
]


# Invariant 2.
@given(clauses, st.sampled_from(PROTECTED), clauses, reasons)
def test_a_protected_span_is_left_alone(before: str, span: str, after: str, reason: str) -> None:
    opening = "\n" if span[0] in "`~" else ""
    text = f"{before} {opening}{span}{opening} {after}"
    assert span in punctuate_postprocess(text, finish_reason=reason)


@given(clauses, st.sampled_from(PROTECTED_LINES), clauses)
def test_a_protected_line_is_left_alone(before: str, line: str, after: str) -> None:
    assert line in punctuate_postprocess(f"{before}\n{line}\n{after}").split("\n")
    assert punctuate_postprocess(line) == line


@pytest.mark.parametrize("marker", LIST_MARKERS)
def test_a_list_item_keeps_its_marker_and_gets_no_final_stop(marker: str) -> None:
    repaired = punctuate_postprocess(f"{marker}今天天气很好,我们去公园 玩")
    assert repaired == f"{marker}今天天气很好，我们去公园，玩"


no_han = st.text(st.sampled_from(MARKS + SYNTAX + "  　\t\nabPython019😀éΩ"), max_size=60)
foreign = st.text(st.sampled_from("のカ한" + HAN + MARKS + " ab1"), max_size=40)


# Invariant 3. A stream cannot see kana that is yet to come: it protects from there on.
@given(no_han, reasons)
def test_text_without_han_is_unchanged(text: str, reason: str) -> None:
    assert punctuate_postprocess(text, finish_reason=reason) == text


@given(
    st.sampled_from(["これは", "한국어", "今日は", "東京 の", "日本語,テスト"]), foreign, reasons
)
def test_a_line_is_unchanged_from_its_kana_or_hangul_on(start: str, rest: str, reason: str) -> None:
    assert punctuate_postprocess(start + rest, finish_reason=reason) == start + rest


# Invariant 4.
@given(any_text, reasons)
@example("；-\n\n;吗？第一章</tool_call>:（1）|:D>$    （.$$", "stop")
@example("今b,….。.?:…“", "stop")
def test_repairing_twice_is_repairing_once(text: str, reason: str) -> None:
    repaired = punctuate_postprocess(text, finish_reason=reason)
    assert punctuate_postprocess(repaired, finish_reason=reason) == repaired


# Invariant 5.
@given(any_text, reasons, st.randoms(use_true_random=False))
@example("`[```" + 70 * "好" + " 今天,好`", "stop", random.Random(0))  # a run of ticks out of sight
def test_every_cutting_gives_the_same(text: str, reason: str, rng: random.Random) -> None:
    repaired = punctuate_postprocess(text, finish_reason=reason)
    assert punctuation.stream(list(text), reason) == repaired
    assert punctuation.stream(punctuation.cut(text, rng), reason) == repaired


# Invariant 6, without a clock: what is held and remembered stays small, so a step's work does.
@given(st.sampled_from(sorted(set(HAN + MARKS + SYNTAX + " \n　aの"))), st.sampled_from(["", "今"]))
def test_what_is_remembered_does_not_grow_with_the_text(char: str, start: str) -> None:
    machine = PunctuationStream()
    machine.push(start)
    for _ in range(8):
        machine.push(char * 1000)
    state = [value for value in vars(machine).values() if isinstance(value, str)]
    assert sum(map(len, state)) < 1000


# Invariant 7.
@given(any_text, st.text(max_size=8))
def test_any_text_and_reason_are_taken(text: str, reason: str) -> None:
    failures = PunctuationStream.failures
    punctuate_postprocess(text, finish_reason=reason)
    assert PunctuationStream.failures == failures


class Broken(PunctuationStream):
    def _gap(self) -> str | None:
        raise IndexError("a bug")


def test_a_bug_inside_sends_the_rest_as_it_is_and_is_counted() -> None:
    failures = PunctuationStream.failures
    machine = Broken()
    pieces = ["今天天气很好,我们", "去公园玩.", "好"]
    assert "".join(map(machine.push, pieces)) + machine.finish("stop") == "".join(pieces)
    assert machine.failed
    assert PunctuationStream.failures == failures + 1


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="only 'conservative'"):
        punctuate_postprocess("好", mode="bold")  # type: ignore[arg-type]


ENGLISH = {
    "markdown": """# Title, of sorts

1. One; two: three?!
2. "Quoted" (really)...

> A -- dash, `code, x` and [a link](http://a.b/c,d).

| a, b | c |
| --- | --- |

---
* x
""",
    "python": """def f(a, b=1.5):
    '''Doc: "x", y.'''
    return {"a": [a, b], 'c': a[1:2]}  # ok?!

if x < 3 and y > 4: print(f"{x!r:>10}", ...)
""",
    "yaml": """a: 1
b:
  - "x, y"
  - {c: d, e: [1, 2]}
f: |
  text; more!
""",
    "json": """{
  "a": [1, 2.5, "x, y: z"],
  "b": {"c": null, "d": "e?"}
}
""",
}


@pytest.mark.parametrize("kind", ENGLISH)
def test_english_is_unchanged(kind: str) -> None:
    assert punctuate_postprocess(ENGLISH[kind]) == ENGLISH[kind]


def test_only_a_natural_end_gets_the_final_mark_and_as_its_own_delta() -> None:
    machine = PunctuationStream()
    assert machine.push("今天天气很好我们去公园玩") == "今天天气很好我们去公园玩"
    assert machine.finish("stop") == "。"
    for reason in ("length", "abort", "stop_string"):
        text = "今天天气很好我们去公园玩"
        assert punctuate_postprocess(text, finish_reason=reason) == text


def test_well_punctuated_text_is_hardly_held_back() -> None:
    text = (
        "他说：“今天天气很好，我们去公园玩。”你呢？我想看《红楼梦》（第一回），听说写得很好……" * 5
    )
    assert sorted(punctuation.held(list(text)))[-len(text) // 100] <= 2


def test_no_soup_breaks_an_invariant(capsys: pytest.CaptureFixture[str]) -> None:
    broken = punctuation.fuzz(2000, seed=1)
    assert broken == 0, capsys.readouterr().out


def test_the_corpus_figures_hold() -> None:
    got = punctuation.corpus(DATA / "zh_gsdsimp_dev.txt")
    assert got.unchanged_sentences >= 0.995
    assert got.final_right >= 0.94
    assert got.commas.precision >= 0.99
    assert got.commas.recall >= 0.85
    assert got.commas.f1 >= 0.92
