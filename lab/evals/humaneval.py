"""HumanEval (Chen et al. 2021): Python functions, judged by their tests in a sandbox."""

from __future__ import annotations

from typing import Any

from lab.evals import sandbox
from youtu_llm.tools.evals import answers
from youtu_llm.tools.evals.datasets import HUMANEVAL
from youtu_llm.tools.evals.tasks import Question, Task, Verdict


def question(index: int, record: dict[str, Any]) -> Question:
    ask = (
        "Complete this Python function. Answer with the whole function, its imports included, in"
        " one ```python block."
    )
    prompt = f"{ask}\n\n```python\n{record['prompt'].strip()}\n```"

    def judge(answer: str) -> Verdict:
        return sandbox.run(program(record, answer))

    return Question(record["task_id"], prompt, judge)


def program(record: dict[str, Any], answer: str) -> str:
    """The model's code, between what the prompt defines before its function and the tests."""
    name, stub = record["entry_point"], record["prompt"]
    code = answers.code(answer, name)
    if answers.defines(code, name):
        stub = stub[: stub.rindex(f"def {name}")]
    return f"{stub}\n{code}\n{record['test']}\ncheck({name})\n"


TASK = Task("humaneval", HUMANEVAL, question)
