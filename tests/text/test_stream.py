"""However an answer's tokens are cut, its text is the same."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.byte_tokenizer import EOS, ByteTokenizer
from youtu_llm.text.stream import TextStream

# Few distinct characters, so that stop strings, their prefixes and broken UTF-8 come up often.
PIECES = st.sampled_from(["ab", "ba", "a", "b", "a", "b", "。", b"\xe3", b"\xff", None])
IDS = st.lists(PIECES, min_size=3, max_size=12).map(
    lambda pieces: [
        byte
        for piece in pieces
        for byte in ([EOS] if piece is None else piece.encode() if type(piece) is str else piece)
    ]
)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4) | st.just("b。"), max_size=3)
CUTS = st.lists(st.integers(1, 8), max_size=6)


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


@given(IDS, STOPS, CUTS)
@example([*b"aba"], ["aba", "b"], [3])  # the shorter is complete first
@example([*b"aabab"], ["abab", "bab"], [4])  # both at once
def test_any_cutting_gives_the_text_up_to_the_first_stop(
    ids: list[int], stop: list[str], cuts: list[int]
) -> None:
    texts, hit = stream(ids, stop, cuts)
    assert ("".join(texts), hit) == expected(ids, stop)


@given(IDS, STOPS)
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
