"""Sentences: where a text may be cut, the same for every way it arrives in pieces."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.evals import punctuation
from youtu_llm.sentences import Sentence, SentenceStream, split_sentences

# Each case is the sentences; the text is these joined by what stands before the name.
CASES = {
    "": [
        ["今天天气很好。", "我们去公园玩！", "你去吗？"],
        ["真的吗？！", "太好了！！！", "走……好吧。"],
        ["圆周率是3.14，版本是v1.2.3。", "共1,000台!", "好."],
        ["他说：“今天很好。我们走吧！”", "然后走了。"],
        ["他问：“你好吗？”的时候，我笑了。", "（他来了。我走了。）", "好。"],
        ['他说:"很好.走吧!"', "好。"],
        ["请访问https://a.cn/b?c=1.d。", "邮箱是a.b@c.cn。", "IP是192.168.1.1。"],
        ["公式 $a. b! c$ 成立。", "其中\\(x!y\\)是数。", "运行`a. b`。"],
        ["J.K.罗琳写了书.", "达.芬奇画了画.", "他很忙."],
        ["温度是25.5℃。", "比分3:2！", "时间08:05:30。"],
        ["她说“好”。", "《你好！》是书。"],
        ["他说：“未完。继续"],
    ],
    " ": [
        ["Dr. Smith arrived at 3 p.m. on Monday.", "He said hello.", "It's 3.5 kg."],
        ["Hello, world!", "How are you?", "See Fig. 2, e.g. No. 5."],
        ['He said "Stop. Go!" to me.', "Fine."],
        ["这是新版本。", "Python 3.11.2 is out!", "好。"],
    ],
    "\n": [
        ["1. 打开电源", "2. 按下启动键。", "- 等待"],
        ["| 好。| 是！ |", "# 标题。好"],
        ["白日依山尽", "黄河入海流"],
        ["看：", "```python\nx = 1. \nprint('好。')\n```", "完。"],
        ["他说：“未完。继续", "新的一行。", "好。"],
    ],
}


def stream(pieces: list[str], first_clause: int = 0) -> list[Sentence]:
    machine = SentenceStream(first_clause=first_clause)
    return [sentence for piece in pieces for sentence in machine.push(piece)] + machine.finish()


@pytest.mark.parametrize(
    ("between", "sentences"), [(between, case) for between in CASES for case in CASES[between]]
)
def test_a_text_is_cut_where_a_sentence_ends(between: str, sentences: list[str]) -> None:
    text = between.join(sentences)
    got = split_sentences(text)
    assert [sentence.text for sentence in got] == sentences
    assert all(text[start:end] == sentence for sentence, start, end in got)
    rng = random.Random(text)
    for _ in range(200):
        assert stream(punctuation.cut(text, rng, longest=rng.choice((1, 3, 8)))) == got


@given(
    st.lists(st.sampled_from(punctuation.TOKENS), max_size=20).map("".join) | st.text(),
    st.sampled_from([0, 6]),
    st.randoms(use_true_random=False),
)
def test_every_cutting_gives_the_same_and_nothing_is_lost(
    text: str, first_clause: int, rng: random.Random
) -> None:
    got = split_sentences(text, first_clause=first_clause)
    assert stream(list(text), first_clause) == got
    assert stream(punctuation.cut(text, rng), first_clause) == got
    end = 0
    for sentence in got:
        assert sentence.start >= end
        assert text[sentence.start : sentence.end] == sentence.text
        assert not any(map(str.isalnum, text[end : sentence.start]))
        end = sentence.end
    assert not any(map(str.isalnum, text[end:]))


def test_a_sentence_comes_with_the_character_after_its_mark() -> None:
    machine = SentenceStream()
    assert machine.push("今天天气很好。") == []
    assert machine.push("我") == [Sentence("今天天气很好。", 0, 7)]
    assert machine.push("们走") == []
    assert machine.finish() == [Sentence("我们走", 7, 10)]


def test_the_first_clause_may_come_alone() -> None:
    text = "共3,000米，请在前方路口靠右行驶，然后左转。走吧，去玩。"
    got = [sentence.text for sentence in split_sentences(text, first_clause=6)]
    assert got == ["共3,000米，请在前方路口靠右行驶，", "然后左转。", "走吧，去玩。"]


def test_a_pair_that_is_never_closed_holds_no_more_than_a_few_sentences() -> None:
    got = split_sentences("他说：“" + "今天天气很好。" * 100)
    assert len(got) > 50
