"""`python -m lab.evals kl | ppl`: how well a model predicts held-out text, and how far it is from
the model it was made from. A row of the results is a document.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from lab.evals.teacher import Sums, TeacherForced, encode, measure
from lab.evals.texts import SOLUTIONS, Document
from youtu_llm.engine.backend import Backend
from youtu_llm.errors import ModelError
from youtu_llm.text.tokenizer import Tokenizer
from youtu_llm.tools.evals import intervals
from youtu_llm.tools.evals.intervals import Interval
from youtu_llm.tools.evals.results import Results, Row
from youtu_llm.tools.status import table


def run(
    model_dir: Path,
    reference_dir: Path | None,
    documents: Sequence[Document],
    results: Results,
    backend: Backend,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Measure the documents that `results` lacks. Both models are in memory meanwhile.

    Raises ModelError if the two can't be compared, ResourceError if one doesn't fit.
    """
    known = {row["id"] for row in results.rows}
    left = [document for document in documents if document.id not in known]
    done = len(documents) - len(left)
    on_progress(done, len(documents))
    if not left:
        return
    texts = _encode_all(left, model_dir)
    if reference_dir and _encode_all(left, reference_dir) != texts:
        raise ModelError(
            f"{model_dir} and {reference_dir} make other tokens of the same text: a model is"
            " compared with the one it was made from"
        )
    model = TeacherForced(model_dir, backend)
    reference = TeacherForced(reference_dir, backend) if reference_dir else None
    if reference and reference.vocab_size != model.vocab_size:
        raise ModelError(
            f"{model_dir} has {model.vocab_size} tokens and {reference_dir}"
            f" {reference.vocab_size}: a model is compared with the one it was made from"
        )
    max_tokens = min(each.max_tokens for each in (model, reference) if each)
    for document, (ids, first) in zip(left, texts, strict=True):
        sums = measure(ids[:max_tokens], first, model, reference)
        results.add({"id": document.id, "domain": document.domain, **asdict(sums)})
        done += 1
        on_progress(done, len(documents))


def _encode_all(documents: Sequence[Document], model_dir: Path) -> list[tuple[list[int], int]]:
    tokenizer = Tokenizer.load(model_dir)
    return [encode(document, tokenizer) for document in documents]


def report(rows: Iterable[Row], *, with_reference: bool) -> str:
    by_domain: dict[str, list[Sums]] = {}
    for row in rows:
        sums = Sums(**{key: value for key, value in row.items() if key not in ("id", "domain")})
        by_domain.setdefault(row["domain"], []).append(sums)
    if not with_reference:
        cells = [(name, *_own(parts)) for name, parts in by_domain.items()]
        return table(("DOMAIN", "DOCUMENTS", "TOKENS", "PERPLEXITY", "ACCURACY %"), cells)
    head = ("DOMAIN", "DOCUMENTS", "TOKENS", "KL, NATS", "TOP-1 %", "PERPLEXITY", "REFERENCE'S")
    cells = [(name, *_divergence(parts)) for name, parts in by_domain.items()]
    kl = [_mean(parts, "kl").value for parts in by_domain.values()]
    agree = [_mean(parts, "agree").value for parts in by_domain.values()]
    cells.append(
        ("mean", "", "", f"{sum(kl) / len(kl):.4f}", f"{100 * sum(agree) / len(agree):.2f}", "", "")
    )
    accuracies = [(name, *_accuracy(parts)) for name, parts in by_domain.items()]
    solutions = [sums for name in SOLUTIONS for sums in by_domain.get(name, ())]
    if all(name in by_domain for name in SOLUTIONS):
        accuracies.append((" + ".join(SOLUTIONS), *_accuracy(solutions)))
    return "\n\n".join(
        (
            table(head, cells),
            table(("TOKENS RIGHT", "%", "REFERENCE %", "DIFFERENCE, POINTS"), accuracies),
            "In brackets and behind ±: 95 %, a document as the unit.",
        )
    )


def _mean(parts: Sequence[Sums], *names: str) -> Interval:
    """Of the sum's mean a token, or of the difference of two."""
    values = [
        getattr(sums, names[0]) - (getattr(sums, names[1]) if names[1:] else 0) for sums in parts
    ]
    return intervals.mean(values, [sums.tokens for sums in parts])


def _own(parts: Sequence[Sums]) -> tuple[object, ...]:
    perplexity, accuracy = math.exp(_mean(parts, "nll").value), _mean(parts, "hits")
    return len(parts), sum(s.tokens for s in parts), f"{perplexity:.3f}", accuracy.percent()


def _divergence(parts: Sequence[Sums]) -> tuple[object, ...]:
    kl, agree = _mean(parts, "kl"), _mean(parts, "agree")
    return (
        len(parts),
        sum(sums.tokens for sums in parts),
        str(kl),
        f"{100 * agree.value:.2f}",
        f"{math.exp(_mean(parts, 'nll').value):.3f}",
        f"{math.exp(_mean(parts, 'reference_nll').value):.3f}",
    )


def _accuracy(parts: Sequence[Sums]) -> tuple[object, ...]:
    """Paired: of the same tokens, how many more or less than the reference."""
    return (
        f"{100 * _mean(parts, 'hits').value:.2f}",
        f"{100 * _mean(parts, 'reference_hits').value:.2f}",
        _mean(parts, "hits", "reference_hits").percent(signed=True),
    )
