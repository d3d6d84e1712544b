"""However an answer's tokens are cut, its text is the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from youtu_llm.text.stream import TextStream

from tests.byte_tokenizer import EOS, ByteTokenizer

# Few distinct characters, so that stop strings, their prefixes and broken UTF-8 come up often.
BYTES = st.lists(st.sampled_from([*"aab。".encode(), 0xE3, 0xFF, EOS]), max_size=40)
STOPS = st.lists(st.text("ab。", min_size=1, max_size=4), max_size=3)
CUTS = st.lists(st.integers(0, 6), max_size=40)


def stream(ids: list[int], stop: list[str], cuts: list[int]) -> tuple[list[str], str | None]:
    """The text of each push and of finish, and the stop string that was hit."""
    text_stream = TextStream(ByteTokenizer(), stop)
    texts, at = [], 0
    for length in [*cuts, len(ids)]:
        texts.append(text_stream.push(ids[at : at + length]))
        at += length
    return [*texts, text_stream.finish()], text_stream.stop_hit


def expected(ids: list[int], stop: list[str]) -> tuple[str, str | None]:
    """By definition: the first prefix of the whole text that ends with a stop string ends it."""
    text = bytes(i for i in ids if i != EOS).decode("utf-8", "replace")
    for end in range(len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(BYTES, STOPS, CUTS)
def test_any_cutting_gives_the_text_up_to_the_first_stop(
    ids: list[int], stop: list[str], cuts: list[int]
) -> None:
    texts, hit = stream(ids, stop, cuts)
    assert ("".join(texts), hit) == expected(ids, stop)


@given(BYTES, STOPS)
def test_only_a_live_prefix_is_held_back(ids: list[int], stop: list[str]) -> None:
    texts, _ = stream(ids, stop, [1] * len(ids))
    shown = ""
    for count, text in enumerate(texts[: len(ids)], 1):
        shown += text
        whole, hit = expected(ids[:count], stop)
        if hit is None:
            # Beside a stop string's beginning only an unfinished character may be missing.
            held = whole.rstrip("\ufffd")[len(shown) :]
            assert held == "" or any(s.startswith(held) and s != held for s in stop)


def test_a_character_is_shown_when_its_last_byte_is_there() -> None:
    text_stream = TextStream(ByteTokenizer())
    assert [text_stream.push([byte]) for byte in "é导😀".encode()] == [
        *("", "é"),
        *("", "", "导"),
        *("", "", "", "😀"),
    ]
    assert text_stream.push([0xE5]) == ""
    assert text_stream.finish() == "\ufffd"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty stop string"):
        TextStream(ByteTokenizer(), ["。", ""])
