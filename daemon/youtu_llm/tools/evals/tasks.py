"""The tasks that a model answers: what it is asked, and when its answer is right."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from youtu_llm.errors import InvalidRequest
from youtu_llm.tools.evals import answers
from youtu_llm.tools.evals.datasets import CMATH, GSM8K, DataSet, records

SEED = 0  # of the order, which --limit cuts: a longer run asks what a shorter one asked, and more


@dataclass(frozen=True, slots=True)
class Verdict:
    passed: bool
    why: str = ""  # it did not


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    prompt: str
    judge: Callable[[str], Verdict]  # of an answer


@dataclass(frozen=True, slots=True)
class Task:
    """`question` makes one of a record."""

    name: str
    data_set: DataSet
    question: Callable[[int, dict[str, Any]], Question]

    def questions(self, path: Path, limit: int | None = None) -> list[Question]:
        """In a fixed shuffled order."""
        made = [self.question(i, record) for i, record in enumerate(records(self.data_set, path))]
        random.Random(SEED).shuffle(made)
        if not made:
            raise InvalidRequest(f"{path} holds no question")
        return made[:limit]


def _gsm8k(index: int, record: dict[str, Any]) -> Question:
    ask = "Please reason step by step, and put your final answer within \\boxed{}."
    return _sum(index, f"{record['question']}\n{ask}", record["answer"])


def _cmath(index: int, record: dict[str, Any]) -> Question:
    ask = "请逐步推理，并把最终答案写在\\boxed{}中。"
    return _sum(index, f"{record['input']}\n{ask}", record["golden"])


def _sum(index: int, prompt: str, solution: str) -> Question:
    golden = answers.final_number(solution)
    if golden is None:
        raise InvalidRequest(f"record {index + 1}: its solution «{solution}» holds no number")

    percents = [answers.PERCENT]
    if golden == answers.final_number(solution, percent=Fraction(1)):
        percents.append(Fraction(1))  # «what percentage»: of a golden 25, 25% says the same

    def judge(answer: str) -> Verdict:
        numbers = [answers.final_number(answer, percent=percent) for percent in percents]
        is_right = golden in numbers
        return Verdict(is_right, "" if is_right else f"{numbers[0]}, not {golden}")

    return Question(str(index), prompt, judge)


TASKS = {
    task.name: task
    for task in (
        Task("gsm8k", GSM8K, _gsm8k),
        Task("cmath", CMATH, _cmath),
    )
}
