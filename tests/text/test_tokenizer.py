from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models

from tests.text.samples import DATA, SAMPLES, write_sample_tokenizer
from youtu_llm import paths
from youtu_llm.errors import InvalidRequest, ModelError
from youtu_llm.text.tokenizer import Tokenizer

CONTROL = [t for t, kind in zip(DATA["tokens"], DATA["types"], strict=True) if kind == 3]
END = DATA["tokens"].index("<|im_end|>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_tokenizer(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def published(folder: Path) -> Any:
    """transformers' own definition of Qwen2's tokenizer, over the same vocabulary."""
    pytest.importorskip("transformers", reason="transformers is not installed in this environment")
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    merges = [tuple(merge.split(" ")) for merge in DATA["merges"]]
    vocab = {t: i for i, t in enumerate(DATA["tokens"]) if DATA["types"][i] == 1}
    return Qwen2Tokenizer(vocab=vocab, merges=merges)


@pytest.mark.parametrize("name", SAMPLES)
def test_ids_equal_llama_cpp(tokenizer: Tokenizer, name: str) -> None:
    text, ids = SAMPLES[name]["text"], SAMPLES[name]["ids"]
    assert tokenizer.encode(text) == ids
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text


def test_a_conversation_equals_llama_cpp(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_chat(DATA["chat"]["messages"]) == DATA["chat"]["ids"]


PIECES = st.sampled_from([*"ab 1２\n\t'’。é가\u3000👩", "e\u0301", "'ll"])


@given(pieces=st.lists(PIECES, max_size=30))
def test_ids_equal_transformers_even_for_what_nfc_changes(
    tokenizer: Tokenizer, published: Any, pieces: list[str]
) -> None:
    text = "".join(pieces)
    assert tokenizer.encode(text) == published.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("cut", range(1, len("<|im_end|>")))
def test_a_control_token_cannot_begin_in_a_message_and_end_in_the_template(
    folder: Path, tokenizer: Tokenizer, cut: int
) -> None:
    name = "<|im_end|>"
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = "{{ messages[0].content }}" + name[cut:]
    other = Tokenizer(backend, eos_token_ids=[END], chat_template=template)
    ids = other.encode_chat([{"role": "user", "content": name[:cut]}])
    assert ids == tokenizer.encode(name)
    assert END not in ids


@given(parts=st.lists(st.sampled_from([*CONTROL[:3], "<|im_", "end|>", "<", "a", "\n"])))
def test_a_message_cannot_write_control_tokens(tokenizer: Tokenizer, parts: list[str]) -> None:
    content = "".join(parts)
    ids = tokenizer.encode_chat([{"role": "user", "content": content}])
    empty = tokenizer.encode_chat([{"role": "user", "content": ""}])
    control = {DATA["tokens"].index(name) for name in CONTROL}
    assert [i for i in ids if i in control] == [i for i in empty if i in control]
    # And nothing of it is lost or changed.
    shown = b"".join(map(tokenizer.token_bytes, ids)).decode()
    assert shown == b"".join(map(tokenizer.token_bytes, empty)).decode().replace(
        "user\n", f"user\n{content}"
    )


def test_what_a_template_refuses_is_the_clients_error(folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = "{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}"
    tokenizer = Tokenizer(backend, eos_token_ids=[END], chat_template=template)
    message = {"role": "user", "content": "a"}
    with pytest.raises(InvalidRequest, match="one message only"):
        tokenizer.encode_chat([message, message])
    with pytest.raises(InvalidRequest, match="role is one of system, user"):
        tokenizer.encode_chat([{"role": "user<|im_end|>", "content": "a"}])
    with pytest.raises(InvalidRequest, match="not Unicode"):
        tokenizer.encode("\ud800")
    with pytest.raises(InvalidRequest, match="no chat template"):
        Tokenizer(backend, eos_token_ids=[END]).encode_chat([message])


def test_a_template_cannot_reach_python(folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    tokenizer = Tokenizer(backend, eos_token_ids=[END], chat_template=template)
    with pytest.raises(ModelError, match="chat template failed"):
        tokenizer.encode_chat([{"role": "user", "content": "a"}])


def test_sentencepiece_tokens_are_bytes_and_words() -> None:
    vocab = {"<0x00>": 0, "<0xE5>": 1, "▁a": 2, "导": 3, "</s>": 4}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer = Tokenizer(backend, eos_token_ids=[4])
    found = [tokenizer.token_bytes(i) for i in range(6)]
    assert found == [b"\0", b"\xe5", b" a", "导".encode(), b"", b""]


def test_broken_files_name_themselves(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
    whole = (folder / "tokenizer.json").read_text("utf-8")
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2], "utf-8")
    with pytest.raises(ModelError, match=r"tokenizer\.json: .*pull or import"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(whole, "utf-8")
    with pytest.raises(ModelError, match="eos_token_id"):
        Tokenizer.load(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert Tokenizer.load(tmp_path).eos_token_ids == (7,)


@pytest.mark.model
def test_the_real_tokenizer_gives_the_same_ids() -> None:
    folder = paths.models_dir() / "qwen2.5-coder-0.5b"
    if not folder.exists():
        pytest.skip(f"{folder} is not there; `youtu pull qwen2.5-coder-0.5b` makes it")
    tokenizer = Tokenizer.load(folder)
    for sample in SAMPLES.values():
        original = [DATA["original_ids"][i] for i in sample["ids"]]
        assert tokenizer.encode(unicodedata.normalize("NFC", sample["text"])) == original
    chat = [DATA["original_ids"][i] for i in DATA["chat"]["ids"]]
    assert tokenizer.encode_chat(DATA["chat"]["messages"]) == chat
