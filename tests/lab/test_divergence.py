"""Teacher-forced measures of tiny models, beside transformers' own logits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers

from lab.evals import divergence, texts
from lab.evals.teacher import Sums, TeacherForced, measure
from lab.evals.texts import Document
from tests.engine import tiny
from tests.text.samples import DATA, write_sample_tokenizer
from youtu_llm.engine.backend import Backend
from youtu_llm.errors import InvalidRequest, ModelError, NotFound
from youtu_llm.ops.reference import ReferenceOps
from youtu_llm.tools.evals.results import Results

FIRST = 300  # tokens given; with 600 in all, three chunks and pages


@pytest.fixture
def backend() -> Backend:
    return Backend(ReferenceOps(torch.device("cpu"), torch.float32), torch.float32)


def perturbed(arch: str, folder: Path) -> transformers.PreTrainedModel:
    model = tiny.make(arch, folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)
    return model


@torch.inference_mode()
def predicted(model: transformers.PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """log p [targets, vocab] in float64."""
    logits = model(torch.tensor([ids])).logits[0, FIRST - 1 : -1]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_sums_are_those_of_the_logits(arch: str, tmp_path: Path, backend: Backend) -> None:
    oracles = [tiny.make(arch, tmp_path / "a"), perturbed(arch, tmp_path / "b")]
    reference, model = (TeacherForced(tmp_path / name, backend) for name in "ab")
    ids = tiny.prompt(600)
    p, q = (predicted(oracle, ids) for oracle in oracles)
    targets = torch.tensor(ids[FIRST:])

    got = measure(ids, FIRST, model, reference)
    assert got.tokens == 300
    assert got.kl == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3)
    assert got.kl > 0.1, "the disturbance shows"
    assert got.nll == pytest.approx(-float(q.gather(1, targets[:, None]).sum()), rel=1e-5)
    assert got.reference_nll == pytest.approx(-float(p.gather(1, targets[:, None]).sum()), rel=1e-5)
    assert got.hits == int((q.argmax(-1) == targets).sum())
    assert got.reference_hits == int((p.argmax(-1) == targets).sum())
    assert got.agree == int((p.argmax(-1) == q.argmax(-1)).sum()) < 300

    alone = measure(ids, FIRST, model, None)
    assert (alone.tokens, alone.nll, alone.hits) == (got.tokens, got.nll, got.hits)


def test_a_model_is_as_it_is(tmp_path: Path, backend: Backend) -> None:
    tiny.make("qwen2", tmp_path)
    model = TeacherForced(tmp_path, backend)
    got = measure(tiny.prompt(400), 1, model, model)
    assert (got.kl, got.agree, got.tokens) == (0.0, 399, 399)
    assert got.hits == got.reference_hits
    assert got.nll == pytest.approx(got.reference_nll)


def test_a_run_goes_on_where_it_was(tmp_path: Path, backend: Backend) -> None:
    folder = tmp_path / "model"
    tiny.make("qwen2", folder, vocab_size=len(DATA["tokens"]))
    write_sample_tokenizer(folder)
    documents = [
        Document("one", "chinese", "今天天气很好，我们去公园玩。"),
        Document("two", "mathematics", "It is 4.\n#### 4", question="2 + 2?"),
        Document("three", "code", "    return x\n", prefix="def f(x):\n"),
        Document("four", "chinese", "我们去公园玩，今天天气很好。"),  # two have an interval
    ]
    path, about = tmp_path / "r.jsonl", {"eval": "kl"}
    with Results(path, about) as results:
        divergence.run(folder, folder, documents[:2], results, backend)
        first = list(results.rows)
    with Results(path, about) as results:
        divergence.run(folder, folder, documents, results, backend)
        assert results.rows[:2] == first
        assert [row["id"] for row in results.rows] == ["one", "two", "three", "four"]
        divergence.run(Path("nowhere"), None, documents, results, backend)  # nothing is left to do
    shown = divergence.report(results.rows, with_reference=True)
    assert "mathematics + code" in shown
    assert "0.0000 ± " in shown


def test_only_what_belongs_together_is_compared(tmp_path: Path, backend: Backend) -> None:
    size = len(DATA["tokens"])
    for name, vocab_size in (("a", size), ("more", size + 32), ("unmerged", size)):
        tiny.make("qwen2", tmp_path / name, vocab_size=vocab_size)
        write_sample_tokenizer(tmp_path / name)
    tokenizer = tmp_path / "unmerged" / "tokenizer.json"
    data = json.loads(tokenizer.read_text())
    data["model"]["merges"] = []
    tokenizer.write_text(json.dumps(data))
    documents = [Document("one", "chinese", "今天天气很好，我们去公园玩。")]
    with Results(tmp_path / "r.jsonl", {}) as results:
        for other, words in (("more", f"has {size} tokens"), ("unmerged", "other tokens of")):
            with pytest.raises(ModelError, match=words):
                divergence.run(tmp_path / "a", tmp_path / other, documents, results, backend)
        assert results.rows == []


def test_the_report_is_paired_and_by_document() -> None:
    """Two documents of 10 and 30 tokens: 1 and 2 tokens fewer right of 40 are 7.5 points."""
    parts = [
        Sums(tokens=10, hits=4, reference_hits=5, kl=1.0, agree=9),
        Sums(tokens=30, hits=20, reference_hits=22, kl=3.0, agree=27),
    ]
    rows = [
        {"id": str(i), "domain": "code"} | {key: getattr(sums, key) for key in Sums.__slots__}
        for i, sums in enumerate(parts)
    ]
    shown = divergence.report(rows, with_reference=True)
    assert "0.1000 ± 0.0000" in shown
    assert "-7.50 [" in shown


def test_held_out_texts(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"openai/human-eval.*--data"):
        texts.held_out(tmp_path, ["code"])
    (tmp_path / "zh_gsdsimp_dev.txt").write_text("今天天气很好。\n" * 100)
    sums = [{"input": f"{n}加1等于多少？", "golden": str(n + 1)} for n in range(100)]
    (tmp_path / "cmath_dev.jsonl").write_text("\n".join(map(json.dumps, sums)))
    (tmp_path / "gsm8k_test.jsonl").write_text(
        json.dumps({"question": "2 + 2?", "answer": "It is <<2+2=4>>4.\n#### 4"})
    )
    got = texts.held_out(tmp_path, ["chinese", "english", "mathematics"], limit=4)
    by_domain: dict[str, list[Document]] = {}
    for document in got.documents:
        by_domain.setdefault(document.domain, []).append(document)
    assert {name: len(made) for name, made in by_domain.items()} == {
        "chinese": 4,
        "english": 4,
        "mathematics": 1,
    }
    assert {d.id.split("-")[0] for d in by_domain["chinese"]} == {"prose", "cmath"}
    assert by_domain["mathematics"][0].target == "It is 4.\n#### 4"
    assert len({document.id for document in got.documents}) == 9
    (tmp_path / "gsm8k_test.jsonl").write_text('{"question": "?"}')
    with pytest.raises(InvalidRequest, match=r"gsm8k_test\.jsonl:1"):
        texts.held_out(tmp_path, ["mathematics"])


def test_a_long_line_is_measured_whole(tmp_path: Path) -> None:
    line = "".join(chr(0x4E00 + i) for i in range(3000))
    (tmp_path / "mine.txt").write_text(line + "\n")
    documents = texts.of_file(tmp_path / "mine.txt").documents
    assert "".join(document.target for document in documents) == line
    assert max(len(document.target) for document in documents) <= texts.CHARS
